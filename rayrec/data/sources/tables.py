"""Anyone's logs in two tables, as Parquet or CSV.

``interactions``: user, item, timestamp, optional rating. ``items``: item, title, optional genres. Other names of
columns are given, or taken where they are obvious.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from rayrec.data.sources import files, reading
from rayrec.data.sources.columns import Form, header, parquet_header
from rayrec.data.sources.columns import read_csv as read_delimited
from rayrec.data.sources.columns import read_parquet as read_table
from rayrec.data.sources.reading import Raw, Rejects

#: By column, the names that are obvious, likeliest first, in lower case and without marks.
OBVIOUS = {
    "user": "user userid uid reviewerid customerid customer username accountid memberid visitorid",
    "item": "item itemid iid movieid productid asin parentasin bookid isbn businessid trackid songid artistid gameid",
    "title": "title itemtitle movietitle producttitle booktitle itemname moviename productname trackname songname name",
    "timestamp": "timestamp time ts unixreviewtime unixtime datetime date eventtime createdat ratedat",
    "rating": "rating ratings stars score overall liked thumbs",
    "genres": "genres genre categories category tags",
}
OPTIONAL = ("rating", "genres")
#: Whatever the header has between columns.
_ANY = Form(separator=None)


def _given(columns: Sequence[str]) -> dict[str, str]:
    """The column of each name that ``--columns`` gives."""
    pairs = [text.partition("=") for text in columns]
    given = {name: column for name, _, column in pairs}
    if wrong := ["".join(pair) for pair in pairs if pair[0] not in OBVIOUS or not pair[2]]:
        raise ValueError(f"--columns {' '.join(wrong)}: wanted NAME=COLUMN, with a name of {', '.join(OBVIOUS)}.")
    return given


def _column(name: str, found: Sequence[str], given: dict[str, str]) -> str | None:
    """The column that is ``name``: the one given, or the likeliest of obvious names."""
    if given.get(name) in found:
        return given[name]
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(found)}
    plain |= {name: name} if name in found else {}
    return next((plain[word] for word in OBVIOUS[name].split() if word in plain), None)


def _read(
    folder: Path,
    ending: str,
    header: Callable[[Path], list[str]],
    read: Callable[[Path, dict[str, str]], pl.DataFrame],
    rejects: Rejects,
    columns: Sequence[str],
) -> Raw:
    given, taken, missing, tables = _given(columns), {}, [], []
    used: set[str] = set()
    for file, wanted in (
        ("items", ("item", "title", "genres")),
        ("interactions", ("user", "item", "rating", "timestamp")),
    ):
        path = files.one(folder, f"{file}.{ending}")
        found = header(path)
        names = {name: _column(name, found, given) for name in wanted}
        if lacks := [name for name, column in names.items() if column is None and name not in OPTIONAL]:
            missing.append(f"{path}: found columns {found}, but {lacks} are missing")
        names = {column: name for name, column in names.items() if column is not None}
        taken |= {name: column for column, name in names.items() if name != column}
        used |= {*names}
        tables.append((path, names))
    lost = sorted({column for name, column in given.items() if column not in used})
    if missing or lost:
        unknown = [f"--columns: no file has a column {column!r}" for column in lost]
        raise ValueError(
            f"{'; '.join(missing + unknown)}. Say which column is which, such as --columns timestamp=COLUMN."
        )
    if taken:
        rejects.told["columns"] = " ".join(f"{name}={column}" for name, column in sorted(taken.items()))
    (item_path, of_items), (path, of_plays) = tables
    known = reading.items(read(item_path, of_items), item_path.name, rejects)
    log = reading.interactions(read(path, of_plays), known, path.name, rejects)
    return Raw(known, item_path.name, rejects, interactions=log)


def read_parquet(folder: Path, columns: Sequence[str] = ()) -> Raw:
    """Read interactions.parquet and items.parquet, files or folders of parts; ``columns`` are ``NAME=COLUMN``."""
    return _read(folder, "parquet", parquet_header, read_table, Rejects(), columns)


def read_csv(folder: Path, columns: Sequence[str] = ()) -> Raw:
    """Read interactions.csv and items.csv: a header, and double quotes around fields that need them."""
    rejects = Rejects()

    def read(path: Path, names: dict[str, str]) -> pl.DataFrame:
        return read_delimited(path, rejects, names, form=_ANY)

    return _read(folder, "csv", lambda path: header(path, _ANY), read, rejects, columns)
