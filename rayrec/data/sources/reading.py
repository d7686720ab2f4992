"""Shared by all sources: reading files with good errors, setting bad rows aside, and the tables they return."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from rayrec.data import schema

#: Ratings are stars: METHODS calls an item liked above 3 and good from 4.
RATINGS = (0.0, 5.0)

#: Rows whose columns are converted at once: intermediate columns take a hundred bytes a row.
_SLICE = 1 << 17

#: A row that was set aside: its file, its row there (from 1, a header included), the reason, and its text.
REJECTED = schema.make("file text, row int64, reason text, text text")


class Truth(Protocol):
    """The distribution that made a synthetic data set."""

    def probabilities(self, history_titles: Sequence[str], user: str) -> np.ndarray: ...


class Rejects:
    """Collects bad rows."""

    def __init__(self) -> None:
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

    ``items`` has columns item, title, genres, read from ``item_file``; ``interactions`` is by ``schema.INTERACTIONS``;
    ``windows`` has columns split, user, timestamp, history (titles), target, in file order. ``genres`` are the data's
    own selected genres.
    """

    items: pl.DataFrame
    item_file: str
    rejects: Rejects
    interactions: pa.Table | None = None
    windows: pl.DataFrame | None = None
    genres: list[str] | None = None
    counts: dict[str, int] = field(default_factory=Counter)
    truth: Truth | None = None


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte order mark; ValueError names the row that is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        row = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: row {row} is not UTF-8. Convert the file, say with `iconv -t utf-8`.") from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    r"""Return (row, line) pairs, rows from 1; only ``\n`` and ``\r\n`` end a line, for titles may hold other breaks."""
    lines = read_text(path).split("\n")
    if not lines[-1]:
        lines.pop()
    return [(row, line.removesuffix("\r")) for row, line in enumerate(lines, 1)]


def _is_utf8(value: Any) -> bool:
    """JSON can spell half a surrogate pair, which no UTF-8 table can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path, kind: type) -> Any:
    """Return one JSON value of type ``kind``; ValueError names the row where it is no JSON."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}: row {error.lineno} is not JSON: {error.msg}"
        raise ValueError(f"{where}. Is the file cut off? Fetch it again.") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: found a JSON {type(value).__name__}, wanted a {kind.__name__}.")
    if "\\u" in text and not _is_utf8(value):
        raise ValueError(
            f"{path}: holds half a surrogate pair (\\ud800 to \\udfff), which is no text. Correct that title."
        )
    return value


def read_jsonl(path: Path, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield (row, object, line) of a JSON-lines file; other lines are set aside."""
    for row, line in read_lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            rejects.add(path.name, row, f"not JSON: {error.msg}", line)
            continue
        if not isinstance(value, dict) or ("\\u" in line and not _is_utf8(value)):
            rejects.add(path.name, row, "not a JSON object of UTF-8 text", line)
            continue
        yield row, value, line


def _check_quotes(path: Path, separator: str) -> None:
    """Arrow reads an unclosed quote to the end of the file in silence; the standard library can be strict about it."""
    with path.open("rb") as raw:
        if not any(b'"' in block for block in iter(lambda: raw.read(1 << 20), b"")):
            return
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            for _ in reader:
                pass
        except csv.Error as error:
            where = f"{path}: the quoted field that ends at row {reader.line_num} is broken"
            raise ValueError(f"{where}: {error}. Close the quote.") from error


def read_csv(path: Path, rejects: Rejects, separator: str = ",", quoted: bool = True) -> pl.DataFrame:
    """Return a delimited file as text columns, with the column ``row``; rows of another width are set aside.

    Raises ValueError: no header, a repeated column, a quote that is not closed, or bytes that are not UTF-8.
    """
    try:
        return _read_csv(path, rejects, separator, quoted)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid):
        read_text(path)  # names the row that is not UTF-8
        raise


def _read_csv(path: Path, rejects: Rejects, separator: str, quoted: bool) -> pl.DataFrame:
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=separator, quoting=quoting), [])
    if not "".join(header).strip() and not read_text(path).strip():
        raise ValueError(f"{path}: the file is empty, wanted a header and rows.")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: a column name is repeated in {header}. Rename one.")
    if quoted:
        _check_quotes(path, separator)
    skipped: list[int] = []

    def set_aside(bad: pyarrow.csv.InvalidRow) -> str:
        skipped.append(bad.number)
        rejects.add(path.name, bad.number, f"{bad.actual_columns} columns instead of {bad.expected_columns}", bad.text)
        return "skip"

    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # with threads the row numbers are lost
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
    rows = np.delete(np.arange(2, 2 + len(table) + len(skipped)), np.array(skipped, int) - 2)
    frame = pl.DataFrame(pl.from_arrow(table, rechunk=False)).with_columns(pl.Series("row", rows, pl.Int64))
    del table
    pa.default_memory_pool().release_unused()
    return frame


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


def _reason(*cases: tuple[pl.Expr, str]) -> pl.Expr:
    """The first case that holds, else null."""
    return pl.coalesce(pl.when(case).then(pl.lit(text)) for case, text in cases)


def items(frame: pl.DataFrame, file: str, rejects: Rejects) -> pl.DataFrame:
    """Return item, title and genres of the good rows of ``frame`` (row, item, title, genres as a list)."""
    genres = pl.col("genres").cast(pl.List(pl.String)).fill_null([])
    frame = frame.with_columns(pl.col("item", "title").cast(pl.String), genres)
    reason = _reason(
        (pl.col("item").fill_null("") == "", "no item id"),
        (pl.col("title").fill_null("").str.strip_chars() == "", "empty title"),
        (~pl.col("item").is_first_distinct(), "item id appears before"),
    )
    return rejects.sift(frame, file, reason, ["item", "title"]).select("item", "title", "genres")


def interactions(frame: pl.DataFrame, catalogue: pl.DataFrame, file: str, rejects: Rejects) -> pa.Table:
    """Return the good rows of ``frame`` (row, user, item, timestamp, optional rating) by ``schema.INTERACTIONS``.

    Rows are in order of time, equal times in file order. Fractions of a second order the rows and are then cut off.
    """
    parts = [_checked(part, catalogue, file, rejects) for part in [*frame.iter_slices(_SLICE)] or [frame]]
    good = pl.concat(parts).sort("timestamp", "seconds", maintain_order=True).drop("seconds")
    return schema.check(good.to_arrow(), schema.INTERACTIONS, file)


def _checked(frame: pl.DataFrame, catalogue: pl.DataFrame, file: str, rejects: Rejects) -> pl.DataFrame:
    """The good rows of some: user, title, rating, timestamp (whole seconds), seconds."""
    show = [name for name in ("user", "item", "rating", "timestamp") if name in frame.columns]
    rating = pl.col("rating").cast(pl.Float64, strict=False) if "rating" in show else pl.lit(0.0)
    if frame.schema["timestamp"].is_temporal():
        frame = frame.with_columns(pl.col("timestamp").dt.epoch("s"))
    seconds = pl.col("timestamp").cast(pl.Float64, strict=False)
    whole = pl.coalesce(pl.col("timestamp").cast(pl.Int64, strict=False), seconds.floor().cast(pl.Int64, strict=False))
    frame = (
        frame.with_columns(pl.col("user", "item").cast(pl.String))
        .join(catalogue.select("item", "title"), on="item", how="left", maintain_order="left")
        .with_columns(whole.alias("whole"), seconds.alias("seconds"), rating.alias("stars"))
    )
    reason = _reason(
        (pl.col("user").fill_null("") == "", "no user id"),
        (pl.col("title").is_null(), "unknown item id"),
        (pl.col("stars").is_null() | pl.col("stars").is_nan(), "rating is not a number"),
        (~pl.col("stars").is_between(*RATINGS), f"rating is not in {RATINGS[0]:g} to {RATINGS[1]:g}"),
        (pl.col("whole").is_null(), "timestamp is not a number of seconds"),
    )
    stars = (pl.col("stars") if "rating" in show else pl.lit(None)).cast(pl.Float32).alias("rating")
    good = rejects.sift(frame, file, reason, show)
    return good.select("user", "title", stars, pl.col("whole").alias("timestamp"), "seconds")
