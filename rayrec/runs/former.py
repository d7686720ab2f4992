"""Answers of a finished evaluation from which lists of other lengths are made, without the policy."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.data import schema
from rayrec.runs.manifest import CHECKPOINT, METRICS, read_json
from rayrec.runs.run import Run

_FILE = "former.parquet"


def relist(run: Run, evaluations: Iterable[str], baselines: Iterable[str], top_k: tuple[int, ...]) -> set[str]:
    """Make every finished phase with lists of other lengths than ``top_k`` an unfinished one, and keep its answers.

    Returns the unfinished evaluations whose answers are kept, also those of an earlier attempt.
    """
    evaluations = list(evaluations)
    for phase in (*evaluations, *baselines):
        folder = run.folder(phase)
        if not run.done(phase) or _lengths(folder) == {*top_k}:
            continue
        if phase in evaluations:
            kept = folder / CHECKPOINT / _FILE
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / "predictions.parquet", kept)
            run.storage.upload(kept)
        run.forget(phase)
    return {phase for phase in evaluations if not run.done(phase) and (run.folder(phase) / CHECKPOINT / _FILE).exists()}


def answers(folder: Path, decode: str, examples: pa.Table) -> pa.Table | None:
    """The kept answers (schema.PREDICTIONS) of an unfinished evaluation to ``examples``; None where there are none."""
    file = folder / CHECKPOINT / _FILE
    if not file.exists():
        return None
    found = pq.read_table(file, columns=schema.PREDICTIONS.names, filters=pc.field("decode") == decode)
    if found["example_id"].to_pylist() != examples["example_id"].to_pylist():
        return None
    return schema.check(found.combine_chunks(), schema.PREDICTIONS, str(file))


def _lengths(folder: Path) -> set[int]:
    """The list lengths of a finished evaluation's metrics."""
    records = read_json(folder / METRICS)["records"]
    return {int(key.rpartition("@")[2]) for record in records for key in record if key.startswith("filled@")}
