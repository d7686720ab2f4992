"""Shared by all sources: reading files with good errors, setting bad rows aside, and the tables they return."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from rayrec.data import schema
from rayrec.data.sources import files, genres

#: A row that was set aside: its file, its row there (from 1, a header included), the reason, and its text.
REJECTED = schema.make("file text, row int64, reason text, text text")


class Truth(Protocol):
    """The distribution that made a synthetic data set."""

    def probabilities(self, history_titles: Sequence[str], user: str) -> np.ndarray: ...


@dataclass
class Log:
    """Interactions as read: ``frame`` (row, user, item, timestamp, optional rating) of ``file``, not checked yet.

    ``catalogue`` (item, title) holds the items that they may name; ``unknown`` is why a row of none is bad. The check
    takes the rows out of ``frame``.
    """

    frame: pl.DataFrame
    catalogue: pl.DataFrame
    file: str
    unknown: str = "unknown item id"


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

    def __bool__(self) -> bool:
        return bool(self._rows or self._frames)

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


def ids(frame: pl.DataFrame, *names: str) -> list[pl.Expr]:
    """Columns of ids as text without space around it; whole numbers have no point, though pandas stores them so."""
    made = []
    for name in names:
        column = pl.col(name)
        text = column.cast(pl.String)
        if frame.schema[name].is_float():
            text = (
                pl.when(column == column.floor())
                .then(column.cast(pl.Int64, strict=False).cast(pl.String))
                .otherwise(text)
            )
        made.append(text.str.strip_chars())
    return made


def items(frame: pl.DataFrame, file: str, rejects: Rejects, spaces: bool = False) -> pl.DataFrame:
    """Return item, title and genres of the good rows of ``frame`` (row, item, title, optional genres).

    Genres may have any form of :func:`rayrec.data.sources.genres.lists`, which reads ``spaces``. Titles that Unicode
    calls equal (NFC), but for space around them, are written as the first of them. ValueError: there is no row.
    """
    if not len(frame) and not rejects:
        raise ValueError(f"The catalogue is empty: found no item in {file}. Name a folder whose item file has rows.")
    if "genres" not in frame.columns:
        frame = frame.with_columns(pl.lit([], pl.List(pl.String)).alias("genres"))
    found, told = genres.lists(frame["genres"], spaces)
    if told:
        rejects.told["genres"] = told
    frame = frame.with_columns(*ids(frame, "item"), pl.col("title").cast(pl.String), found)
    same = pl.col("title").str.strip_chars().str.normalize("NFC")
    if frame.select(same.n_unique() < pl.col("title").n_unique()).item():
        frame = frame.with_columns(pl.col("title").first().over(same))
    reason = first_case(
        (pl.col("item").fill_null("") == "", "no item id"),
        (pl.col("title").fill_null("").str.strip_chars() == "", "empty title"),
        (~pl.col("item").is_first_distinct(), "item id appears before"),
    )
    return rejects.sift(frame, file, reason, ["item", "title"]).select("item", "title", "genres")


def interactions(
    frame: pl.DataFrame, catalogue: pl.DataFrame, file: str, rejects: Rejects, unknown: str = "unknown item id"
) -> Log:
    """Return the rows of ``frame`` (row, user, item, timestamp, optional rating) as ``Raw.interactions``.

    They are checked together with the settings (:mod:`rayrec.data.log`), when ``rejects`` takes the bad ones.
    """
    return Log(frame, catalogue, file, unknown)
