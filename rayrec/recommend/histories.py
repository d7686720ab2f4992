"""Users and their histories: from interaction logs, or from a file of histories."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data.dataset import interactions
from rayrec.data.settings import DataConfig

_log = logging.getLogger(__name__)

#: ``history``: titles, oldest first; null where ``error`` says why there is none.
HISTORIES = pa.schema(
    [
        pa.field("user", pa.string(), nullable=False),
        pa.field("history", pa.list_(pa.field("item", pa.string(), nullable=False))),
        pa.field("error", pa.string()),
    ]
)
#: Rows that are read at once.
_READ = 4096


def from_logs(config: DataConfig, length: int) -> Iterator[pa.Table]:
    """Yield every user's last ``length`` titles, users in the order of their names; bad rows are counted.

    Raises:
        ValueError: the data cannot be read, or has ready rows and no users; ``--histories`` is for those.
    """
    rows, rejected = interactions(config)
    if len(rejected):
        _log.warning("%d bad rows of the data are left out.", len(rejected))
    log: Any = pl.from_arrow(rows.select(["user", "title", "timestamp"]))
    log = log.sort("user", "timestamp", maintain_order=True)
    users = log.group_by("user", maintain_order=True).agg(pl.col("title").tail(length).alias("history"))
    for some in users.iter_slices(_READ):
        yield _table(some.to_dicts())


def from_file(path: str) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet or JSONL file with `user` and `history`; a bad row is one with an ``error``.

    Raises:
        ValueError: there is no such file, or it is of another format.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"--histories {path}: no such file. Name a Parquet or JSONL file with `user` and `history`.")
    if file.suffix == ".jsonl":
        return _of_lines(file)
    try:
        columns = set(pq.read_schema(file).names)
    except (pa.ArrowException, OSError) as error:  # OSError: a damaged footer
        raise ValueError(
            f"--histories {path}: found neither Parquet nor a name that ends in .jsonl ({error}). Convert the file."
        ) from error
    if missing := {"user", "history"} - columns:
        raise ValueError(f"--histories {path}: found columns {sorted(columns)}, wanted {sorted(missing)}. Rename them.")
    return _of_parquet(file)


def _of_lines(file: Path) -> Iterator[pa.Table]:
    rows: list[dict[str, Any]] = []
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                rows.append(_row(json.loads(line)))
            except (ValueError, RecursionError) as error:  # no JSON, or a number of too many digits
                rows.append(_bad(f"no JSON: {error}"))
            if len(rows) == _READ:
                yield pa.Table.from_pylist(rows, schema=HISTORIES)
                rows = []
    yield pa.Table.from_pylist(rows, schema=HISTORIES)


def _of_parquet(file: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(_READ, columns=["user", "history"]):
            yield _table(batch.to_pylist())


def _table(rows: Iterable[Any]) -> pa.Table:
    return pa.Table.from_pylist([_row(row) for row in rows], schema=HISTORIES)


def _row(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        return _bad("wanted an object")
    user, history = row.get("user"), row.get("history")
    try:
        "".join(map(str, [user, *(history if isinstance(history, list) else [])])).encode()
    except UnicodeEncodeError:
        return _bad("found bytes that are no UTF-8, or half a surrogate pair, wanted UTF-8")
    if not isinstance(user, str | int) or isinstance(user, bool):
        return _bad(f"user is {user!r:.80}, wanted a text or a number")
    if history is not None and not (isinstance(history, list) and all(isinstance(title, str) for title in history)):
        return _bad(f"history is {history!r:.80}, wanted a list of titles", str(user))
    return {"user": str(user), "history": history or [], "error": None}


def _bad(error: str, user: str = "") -> dict[str, Any]:
    return {"user": user, "history": None, "error": error}
