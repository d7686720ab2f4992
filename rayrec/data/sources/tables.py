"""Anyone's logs in two tables or one, as Parquet, CSV or JSON lines.

``interactions``: user, item, timestamp, optional rating. ``items``: item, title, optional genres. One table of any
name: user, title, timestamp, optional item, rating, genres. Other names of columns are given, or taken where they are
obvious.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from rayrec.data.sources import files, objects, reading
from rayrec.data.sources.columns import Form, header, parquet_header
from rayrec.data.sources.columns import read_csv as read_delimited
from rayrec.data.sources.columns import read_parquet as read_table
from rayrec.data.sources.reading import Raw, Rejects

#: By column, the names that are obvious, likeliest first, in lower case and without marks.
OBVIOUS = {
    "user": "user userid uid reviewerid customerid customer username accountid memberid visitorid",
    "item": "item itemid iid movieid productid asin parentasin bookid isbn businessid trackid songid artistid gameid",
    "title": "title itemtitle movietitle producttitle booktitle itemname moviename productname trackname songname name",
    "timestamp": "timestamp time ts unixreviewtime unixtime datetime date when eventtime createdat ratedat",
    "rating": "rating ratings stars score overall liked thumbs",
    "genres": "genres genre categories category tags",
}
OPTIONAL = ("rating", "genres")
#: The columns of two tables, and of one.
TWO = {"items": ("item", "title", "genres"), "interactions": ("user", "item", "rating", "timestamp")}
ONE = ("user", "item", "title", "rating", "timestamp", "genres")
#: Rows whose distinct titles are found at once.
_SLICE = 1 << 20
#: Whatever the header has between columns.
_ANY = Form(separator=None)


def _given(columns: Sequence[str]) -> dict[str, str]:
    """The column of each name that ``--columns`` gives."""
    pairs = [text.partition("=") for text in columns]
    given = {name: column for name, _, column in pairs}
    if wrong := ["".join(pair) for pair in pairs if pair[0] not in OBVIOUS or not pair[2]]:
        raise ValueError(f"--columns {' '.join(wrong)}: wanted NAME=COLUMN, with a name of {', '.join(OBVIOUS)}.")
    if len(given) < len(pairs):
        raise ValueError(
            f"--columns {' '.join(columns)}: a name is there twice, wanted one column for each. Leave one."
        )
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
    used, wrong, unread = set[str](), list[str](), list[str]()
    two = folder.is_dir() and all(files.find(folder, f"{file}.{ending}") for file in TWO)
    optional = OPTIONAL if two else (*OPTIONAL, "item")
    wanted_of = (
        {files.one(folder, f"{file}.{ending}"): wanted for file, wanted in TWO.items()} if two else {folder: ONE}
    )
    for path, wanted in wanted_of.items():
        found = header(path)
        names = {name: _column(name, found, given) for name in wanted}
        if lacks := [name for name, column in names.items() if column is None and name not in optional]:
            missing.append(f"{path}: found columns {found}, but {lacks} are missing")
            wrong += lacks
        names = {name: column for name, column in names.items() if column is not None}
        taken |= {name: column for name, column in names.items() if name != column}
        used |= {*names.values()}
        unread += [column for column in found if column not in names.values()]
        tables.append((path, names))
    lost = sorted({column for name, column in given.items() if column not in used})
    if missing or lost:
        unknown = [f"--columns: no file has a column {column!r}" for column in lost]
        example = " ".join(f"{name}=COLUMN" for name in dict.fromkeys(wrong or ["timestamp"]))
        remedy = f"Say which column is which, such as --columns {example}"
        if "title" in wrong and not two:
            remedy += f", or put titles into items.{ending} beside interactions.{ending}"
        if {"user", "timestamp"} <= {*wrong} and not two:
            remedy += f", or put the log into interactions.{ending} beside items.{ending}"
        raise ValueError(f"{'; '.join(missing + unknown)}. {remedy}.")
    told = [" ".join(f"{name}={column}" for name, column in sorted(taken.items()))] if taken else []
    if unread:
        told.append(f"not read: {', '.join(unread[:8])}" + (f" and {len(unread) - 8} more" if len(unread) > 8 else ""))
    if told:
        rejects.told["columns"] = "; ".join(told)

    def table(path: Path, names: dict[str, str]) -> pl.DataFrame:
        by_column = {column: name for name, column in names.items()}  # one column may have several names
        return read(path, by_column).with_columns(pl.col(by_column[names[name]]).alias(name) for name in names)

    if not two:
        return _of_one(table(*tables[0]), folder.name, rejects)
    (item_path, of_items), (path, of_plays) = tables
    known = reading.items(table(item_path, of_items), item_path.name, rejects)
    log = reading.interactions(table(path, of_plays), known, path.name, rejects)
    return Raw(known, item_path.name, rejects, interactions=log)


def _of_one(rows: pl.DataFrame, file: str, rejects: Rejects) -> Raw:
    """A log with titles in its rows; without items a title is one. Of an item with several the first title is taken."""
    if "item" not in rows.columns:
        rows = rows.with_columns(pl.col("title").alias("item"))
        rejects.told["items"] = "each title is one; --columns item=COLUMN names a column of ids"
    pairs = _distinct(rows.drop("user", "timestamp", "rating", strict=False))
    pairs = pairs.with_columns(*reading.ids(pairs, "item"), pl.col("title").cast(pl.String))
    same = pl.col("title").str.strip_chars().str.normalize("NFC")
    pairs = pairs.filter(pl.col("item") != "", same != "").unique(["item", same], keep="first", maintain_order=True)
    first = pairs.unique("item", keep="first", maintain_order=True)
    counts = {}
    if len(pairs) > len(first):
        several = len(pairs.filter(pl.col("item").is_duplicated()).unique("item"))
        counts["items_of_several_titles"] = several
        some = f"{several:,} items have" if several > 1 else "1 item has"
        rejects.told["titles"] = f"{some} several titles: the first is taken"
    known = reading.items(first, f"the titles of {file}", rejects)
    log = reading.interactions(rows.drop("title", "genres", strict=False), known, file, rejects, "no item, or no title")
    return Raw(known, f"the titles of {file}", rejects, interactions=log, counts=counts)


def _distinct(rows: pl.DataFrame) -> pl.DataFrame:
    """The first row of each item and title, in order; a hash table over all rows at once would take 75 bytes a row."""
    parts = [rows.clear(), *rows.iter_slices(_SLICE)]
    some = pl.concat(part.unique(["item", "title"], keep="first", maintain_order=True) for part in parts)
    return some.unique(["item", "title"], keep="first", maintain_order=True)


def read_parquet(folder: Path, columns: Sequence[str] = ()) -> Raw:
    """Read interactions.parquet and items.parquet, files or folders of parts, or the one table that ``folder`` is.

    ``columns`` are ``NAME=COLUMN``.
    """
    return _read(folder, "parquet", parquet_header, read_table, Rejects(), columns)


def read_jsonl(folder: Path, columns: Sequence[str] = ()) -> Raw:
    """Read interactions.jsonl and items.jsonl, or one table: an object in each line, its keys as columns."""
    rejects = Rejects()

    def read(path: Path, names: dict[str, str]) -> pl.DataFrame:
        return objects.read_table(path, rejects, names, OPTIONAL)

    return _read(folder, "jsonl", objects.keys, read, rejects, columns)


def read_csv(folder: Path, columns: Sequence[str] = ()) -> Raw:
    """Read interactions.csv and items.csv, or one table: a header, and double quotes around fields that need them."""
    rejects = Rejects()

    def read(path: Path, names: dict[str, str]) -> pl.DataFrame:
        return read_delimited(path, rejects, names, form=_ANY)

    return _read(folder, "csv", lambda path: header(path, _ANY), read, rejects, columns)
