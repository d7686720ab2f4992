"""Lists as jobs/recommend.py wrote them, by policy and period."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.catalogue import Catalogue
from rayrec.recommend.catalogues import read_catalogue
from rayrec.recommend.histories import from_file

_log = logging.getLogger(__name__)

#: Columns that are read of a list.
SHOWN = pa.schema(
    [
        pa.field("policy", pa.string(), nullable=False),
        pa.field("period", pa.string(), nullable=False),
        pa.field("user", pa.string(), nullable=False),
        pa.field("titles", pa.list_(pa.string()), nullable=False),
        pa.field("fallback", pa.bool_(), nullable=False),
    ]
)


class Key(NamedTuple):
    """A policy in a period: a day, or the name of a file that has no time."""

    policy: str
    period: str


def read_lists(paths: Sequence[str]) -> dict[Key, pa.Table]:
    """Return the lists of files of jobs/recommend.py as :data:`SHOWN`, in order; rows with an ``error`` are left out.

    Raises:
        ValueError: a file is missing, of another kind, named as another JSONL file, or no list is left.
    """
    named: dict[str, str] = {}
    for path in paths:
        if path.endswith(".jsonl") and (other := named.setdefault(Path(path).stem, path)) != path:
            raise ValueError(f"{other}, {path}: found two periods of one name, wanted a name for each. Rename one.")
    table = pa.concat_tables([SHOWN.empty_table(), *(_read(Path(path).expanduser()) for path in paths)])
    if not len(table):
        raise ValueError("No list is left in these files: all rows have an error. Make them again.")
    frame: Any = pl.from_arrow(table)
    parts = frame.partition_by("policy", "period", as_dict=True, include_key=True)
    return {Key(*key): parts[key].to_arrow().cast(SHOWN) for key in sorted(parts)}


def _read(file: Path) -> pa.Table:
    if not file.is_file():
        raise ValueError(f"{file}: no such file. Name files that jobs/recommend.py wrote.")
    try:
        if file.suffix == ".jsonl":
            return pa.Table.from_pylist(list(_lines(file)), schema=SHOWN)
        table = pq.read_table(file, columns=["user", "title", "fallback", "error", "policy", "created"])
        table = table.filter(table["error"].is_null())
        days = [created.date().isoformat() for created in table["created"].to_pylist()]
        columns = [table["policy"], pa.array(days, pa.string()), table["user"], table["title"], table["fallback"]]
        return pa.table(dict(zip(SHOWN.names, columns, strict=True))).cast(SHOWN)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:  # OSError: a damaged footer
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file}: found no lists of jobs/recommend.py ({why}). Name its .parquet or .jsonl."
        ) from error


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:  # a title may hold characters at which str.splitlines splits
        for row in map(json.loads, lines):
            if row["error"] is None:
                out = row["output"]
                names = {"user": row["input"]["userId"], "policy": out["policy"], "period": file.stem}
                yield {**names, "titles": out["recommendedItems"], "fallback": out["fallback"]}


def read_items(path: str) -> Catalogue:
    """Return the catalogue of a run, or of a file with a column `title`; ValueError: it is neither."""
    file = Path(path).expanduser()
    if file.suffix == ".parquet" and file.is_file():
        try:
            return Catalogue.from_table(pq.read_table(file))
        except (pa.ArrowException, ValueError):
            pass  # no run's own
    return read_catalogue(file)


def read_outcomes(path: str) -> dict[str, str]:
    """Return what users chose after their lists: `user,title` of a CSV or Parquet file, without rows that lack one.

    The last row of a user counts.

    Raises:
        ValueError: the file is missing, or has other columns.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"--outcomes {path}: no such file. Name one with the columns `user` and `title`.")
    try:
        table = pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
        named = table.select(pl.col("user", "title").cast(pl.String)).drop_nulls()
        if len(named) < len(table):
            _log.warning("%d rows of --outcomes have no user or no title and are left out.", len(table) - len(named))
        chosen = dict(named.iter_rows())
        if len(chosen) < len(named):
            text = "%d rows of --outcomes name a user again; the last row of a user counts, the others are left out."
            _log.warning(text, len(named) - len(chosen))
        return chosen
    except pl.exceptions.PolarsError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(f"--outcomes {path}: {why}. Give a CSV or Parquet file with `user` and `title`.") from error


def read_histories(path: str) -> dict[str, list[str]]:
    """Return the histories of users (recommend.histories.from_file)."""
    rows = (row for table in from_file(path) for row in table.to_pylist())
    return {row["user"]: row["history"] for row in rows if row["error"] is None}
