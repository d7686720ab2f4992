"""Shared by all sources: reading files with good errors, setting bad rows aside, and the tables they return."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from rayrec.data import schema
from rayrec.data.sources import files, genres

#: What may separate the columns of a table, likeliest first.
SEPARATORS = (",", "\t", ";", "|")

#: A row that was set aside: its file, its row there (from 1, a header included), the reason, and its text.
REJECTED = schema.make("file text, row int64, reason text, text text")


class Truth(Protocol):
    """The distribution that made a synthetic data set."""

    def probabilities(self, history_titles: Sequence[str], user: str) -> np.ndarray: ...


class Log(NamedTuple):
    """Interactions as read: ``frame`` (row, user, item, timestamp, optional rating) of ``file``, not checked yet.

    ``catalogue`` (item, title) holds the items that they may name.
    """

    frame: pl.DataFrame
    catalogue: pl.DataFrame
    file: str


class Rejects:
    """Collects bad rows, and by name of a column or so what the plan tells about it."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self._rows: list[tuple[str, int, str, str]] = []
        self._frames: list[pl.DataFrame] = []

    def add(self, file: str, row: int, reason: str, text: str) -> None:
        """Set one row aside."""
        self._rows.append((file, row, reason, text.encode(errors="backslashreplace").decode()))

    def sift(self, frame: pl.DataFrame, file: str, reason: pl.Expr, show: Sequence[str]) -> pl.DataFrame:
        """Return the rows whose ``reason`` is null and set the others aside; ``show`` are the columns to quote."""
        frame = frame.with_columns(reason.alias("reason"))
        bad = frame.filter(pl.col("reason").is_not_null())
        text = pl.concat_str([pl.col(name).cast(pl.String).fill_null("") for name in show], separator=", ")
        if len(bad):
            columns = (pl.lit(file).alias("file"), pl.col("row").cast(pl.Int64), "reason", text.alias("text"))
            self._frames.append(bad.select(*columns))
        return frame.filter(pl.col("reason").is_null()).drop("reason")

    def table(self) -> pa.Table:
        """Return all rows set aside, by :data:`REJECTED`."""
        types = {"file": pl.String, "row": pl.Int64, "reason": pl.String, "text": pl.String}
        frames = [pl.DataFrame(self._rows, types, orient="row"), *self._frames]
        return schema.check(pl.concat(frames).to_arrow(), REJECTED, "rejected rows")


@dataclass(frozen=True)
class Raw:
    """The result of a source: items, and either interactions or ready windows.

    ``items`` has columns item, title, genres, read from ``item_file``; ``interactions`` is a log as read, or by
    ``schema.INTERACTIONS``; ``windows`` has columns split, user, timestamp, history (titles), target, in file order.
    ``genres`` are the data's own selected genres.
    """

    items: pl.DataFrame
    item_file: str
    rejects: Rejects
    interactions: Log | pa.Table | None = None
    windows: pl.DataFrame | None = None
    genres: list[str] | None = None
    counts: dict[str, int] = field(default_factory=Counter)
    truth: Truth | None = None


def read_lines(path: Path, latin: bool = False) -> list[tuple[int, str]]:
    r"""Return (row, line) pairs but blank ones, rows from 1; ``latin`` as :func:`~rayrec.data.sources.files.text`.

    Only ``\n`` and ``\r\n`` end a line, for titles may hold other breaks.
    """
    lines = enumerate(files.text(path, latin).split("\n"), 1)
    return [(row, line.removesuffix("\r")) for row, line in lines if line.strip(" \t\r")]


def _check_quotes(path: Path, separator: str, opened: Callable[[], BinaryIO]) -> None:
    """Arrow reads an unclosed quote to the end of the file in silence; the standard library can be strict about it."""
    with opened() as raw:
        if not any(b'"' in block for block in iter(lambda: raw.read(1 << 20), b"")):
            return
    with io.TextIOWrapper(opened(), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            for _ in reader:
                pass
        except csv.Error as error:
            where = f"{path}: the quoted field that ends at row {reader.line_num} is broken"
            raise ValueError(f"{where}: {error}. Close the quote.") from error


def read_csv(
    path: Path,
    rejects: Rejects,
    separator: str | None = ",",
    quoted: bool = True,
    names: Sequence[str] = (),
    latin: bool = False,
) -> pl.DataFrame:
    """Return a delimited file as text columns, with the column ``row``; rows of another width are set aside.

    Without ``separator`` it is the one of the header; ``names`` are the columns of a file without a header; ``latin``
    takes Latin-1 where the file is not UTF-8. Blank rows are passed over.

    Raises ValueError: no header, a repeated column, a quote that is not closed, or bytes that are not UTF-8.
    """
    opened = files.opener(path)
    try:
        return _read_csv(path, rejects, separator, quoted, names, opened)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid):
        text = files.text(path, latin)  # names the row that is not UTF-8
        if not latin:
            raise
        return _read_csv(path, rejects, separator, quoted, names, lambda: io.BytesIO(text.encode()))


def _header(opened: Callable[[], BinaryIO], separator: str | None, quoted: bool) -> tuple[list[str], str]:
    """The names of the columns, and what separates them."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with io.TextIOWrapper(opened(), encoding="utf-8-sig", newline="") as file:
        if separator is None:
            line = file.readline()
            separator = max(SEPARATORS, key=line.count)
            return next(csv.reader([line], delimiter=separator, quoting=quoting), []), separator
        return next(csv.reader(file, delimiter=separator, quoting=quoting), []), separator


def _read_csv(
    path: Path,
    rejects: Rejects,
    separator: str | None,
    quoted: bool,
    names: Sequence[str],
    opened: Callable[[], BinaryIO],
) -> pl.DataFrame:
    header, separator = _header(opened, separator, quoted) if not names else ([*names], separator or ",")
    if not "".join(header).strip() and not files.text(path).strip():
        raise ValueError(f"{path}: the file is empty, wanted a header and rows.")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: a column name is repeated in {header}. Rename one.")
    if quoted:
        _check_quotes(path, separator, opened)
    skipped: list[int] = []

    def set_aside(bad: pyarrow.csv.InvalidRow) -> str:
        skipped.append(bad.number)
        if bad.text.strip():
            reason = f"{bad.actual_columns} columns instead of {bad.expected_columns}"
            rejects.add(path.name, bad.number, reason, bad.text)
        return "skip"

    with opened() as file:
        table = pyarrow.csv.read_csv(
            file,
            # with threads the row numbers are lost
            read_options=pyarrow.csv.ReadOptions(use_threads=False, column_names=names or None),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                ignore_empty_lines=False,
                invalid_row_handler=set_aside,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
    first = 1 if names else 2
    rows = np.delete(np.arange(first, first + len(table) + len(skipped)), np.array(skipped, int) - first)
    frame = pl.DataFrame(pl.from_arrow(table, rechunk=False)).with_columns(pl.Series("row", rows, pl.Int64))
    del table
    pa.default_memory_pool().release_unused()
    blank = pl.all_horizontal(pl.col(header) == "")
    return frame.remove(blank) if frame.select(blank.any()).item() else frame


def read_parquet(path: Path) -> pl.DataFrame:
    """Return a Parquet file's columns, with the column ``row``; ValueError: the file is cut off or no Parquet."""
    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is not readable Parquet: {error}. Is the file cut off? Write it again.") from error
    return pl.DataFrame(pl.from_arrow(table)).drop("row", strict=False).with_row_index("row", offset=1)


def rename(frame: pl.DataFrame, names: dict[str, str], path: Path, optional: Iterable[str] = ()) -> pl.DataFrame:
    """Return the columns ``names`` (found → wanted name) and ``row``; ValueError if one not ``optional`` is missing."""
    found = [name for name in frame.columns if name != "row"]
    missing = [name for name, wanted in names.items() if name not in found and wanted not in optional]
    if missing:
        raise ValueError(
            f"{path}: found columns {found}, but {missing} are missing. Add them or name another format by --source."
        )
    # A select would copy all columns into one piece each.
    return pl.DataFrame([frame["row"], *(frame[name].alias(names[name]) for name in names if name in found)])


def _frame(rows: Sequence[tuple], columns: pa.Schema) -> pl.DataFrame:
    """Through Arrow, which takes lists of lists ten times faster than polars does."""
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    return pl.DataFrame(pl.from_arrow(pa.table(list(values), schema=columns)))


def window_frame(rows: Sequence[tuple[str, str, int, list[str], str]]) -> pl.DataFrame:
    """Return ``Raw.windows`` from (split, user, timestamp, history, target) rows."""
    return _frame(rows, schema.make("split text, user text, timestamp int64, history texts, target text"))


def item_frame(rows: Sequence[tuple[int, str, str, list[str]]], file: str, rejects: Rejects) -> pl.DataFrame:
    """Return the good ones of (row, item, title, genres) rows as :func:`items` does."""
    return items(_frame(rows, schema.make("row int64, item text?, title text?, genres texts?")), file, rejects)


def first_case(*cases: tuple[pl.Expr, str]) -> pl.Expr:
    """The first case that holds, else null."""
    return pl.coalesce(pl.when(case).then(pl.lit(text)) for case, text in cases)


def items(frame: pl.DataFrame, file: str, rejects: Rejects, spaces: bool = False) -> pl.DataFrame:
    """Return item, title and genres of the good rows of ``frame`` (row, item, title, optional genres).

    Genres may have any form of :func:`rayrec.data.sources.genres.lists`, which reads ``spaces``. Titles that Unicode
    calls equal (NFC) are written as the first of them.
    """
    if "genres" not in frame.columns:
        frame = frame.with_columns(pl.lit([], pl.List(pl.String)).alias("genres"))
    found, told = genres.lists(frame["genres"], spaces)
    if told:
        rejects.told["genres"] = told
    frame = frame.with_columns(pl.col("item", "title").cast(pl.String), found)
    same = pl.col("title").str.normalize("NFC")
    if frame.select(same.n_unique() < pl.col("title").n_unique()).item():
        frame = frame.with_columns(pl.col("title").first().over(same))
    reason = first_case(
        (pl.col("item").fill_null("") == "", "no item id"),
        (pl.col("title").fill_null("").str.strip_chars() == "", "empty title"),
        (~pl.col("item").is_first_distinct(), "item id appears before"),
    )
    return rejects.sift(frame, file, reason, ["item", "title"]).select("item", "title", "genres")


def interactions(frame: pl.DataFrame, catalogue: pl.DataFrame, file: str, rejects: Rejects) -> Log:
    """Return the rows of ``frame`` (row, user, item, timestamp, optional rating) as ``Raw.interactions``.

    They are checked together with the settings (:mod:`rayrec.data.log`), when ``rejects`` takes the bad ones.
    """
    return Log(frame, catalogue, file)
