"""Cells of a comparison: finished run folders, each of a method and a seed, and the resources that they took."""

import ctypes
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.methods import BASELINES
from rayrec.metrics import METRICS, Metric, answers
from rayrec.metrics.outcome import Answers, cold
from rayrec.runs.manifest import read_json

#: A metric at a list length.
At = tuple[Metric, int]
#: File of the resources that cells took, in the folder of the comparison.
USED = "cells.json"
_LIBC = ctypes.CDLL(None)  # loaded here, because a forked process of several threads must not load libraries


@dataclass(frozen=True)
class Cell:
    """The last evaluation of one run on its test rows, or the mean of its last ones."""

    method: str
    seed: int
    record: Mapping[str, Any]  #: its line of ``metrics.jsonl``
    predictions: pa.Table
    users: list[str]  #: the user of each row
    ratings: np.ndarray | None = None  #: ratings of the targets, NaN where they are unknown
    cold: np.ndarray | None = None  #: whether training never saw the target of each row
    earlier: tuple["Cell", ...] = ()  #: evaluations of the same rows that the mean takes in; ``record`` is the mean

    @cached_property
    def ids(self) -> list[str]:
        """The evaluated examples."""
        return self.predictions["example_id"].to_pylist()

    @cached_property
    def answers(self) -> Answers:
        """The predictions as numbers."""
        found = answers(self.predictions)
        known = {"rating_N": self.ratings, "cold_N": self.cold}
        return replace(found, **{name: value for name, value in known.items() if value is not None})

    def values(self, names: Sequence[At]) -> np.ndarray:
        """The metrics of each row, (N, names)."""
        own = np.stack([metric.of_rows(self.answers, k) for metric, k in names if metric.of_rows], axis=1)
        return np.mean([own, *(cell.values(names) for cell in self.earlier)], axis=0) if self.earlier else own

    def without(self, metric: Metric, k: int) -> np.ndarray:
        """A metric of all lists without each user in turn, (U,)."""
        assert metric.without
        own = metric.without(self.answers, self.users, k)
        return np.mean([own, *(cell.without(metric, k) for cell in self.earlier)], axis=0) if self.earlier else own


def read_cell(folder: Path, method: str, seed: int, decodes: Sequence[str], last: int = 1) -> Cell:
    """Read the mean of the last evaluations of a run folder; ``Popular`` is every run's own baseline.

    A run of T iterations has the evaluations 1 to T, and one without iterations the evaluation 0. The first of
    ``decodes`` makes the lists; metrics of the written answer are those of `greedy` where there is one. Raises
    ValueError: no evaluation of the run is finished, or none used this decoder.
    """
    found = sorted((path.parent for path in folder.glob("*/evaluate/DONE")), key=lambda path: int(path.parent.name))
    phases = ([phase for phase in found if int(phase.parent.name)] or found or [folder])[-last:]
    decode = "popular" if method == "Popular" else decodes[0]
    if method == "Popular" or method in BASELINES:
        phases = [folder / "00" / BASELINES.get(method, "baseline")]
    *earlier, cell = (_read(folder, phase, method, seed, decode) for phase in phases)
    return replace(cell, record=_mean([one.record for one in (*earlier, cell)]), earlier=tuple(earlier))


def _mean(values: Sequence[Any]) -> Any:
    """The mean of records, number by number, None where one has none; of a count or a text the last."""
    last = values[-1]
    if not isinstance(last, float | Mapping):
        return last
    if None in values:
        return None
    if isinstance(last, Mapping):
        return {name: _mean([one.get(name) for one in values]) for name in last}
    return float(np.mean(values))


def _read(folder: Path, last: Path, method: str, seed: int, decode: str) -> Cell:
    """Read one evaluation, whose files are in ``last``."""
    if not (last / "metrics.json").exists():
        raise ValueError(f"{folder}: no evaluation is finished. Run the comparison again.")
    records = {(r["split"], r.get("decode", "popular")): r for r in read_json(last / "metrics.json")["records"]}
    if ("test", decode) not in records:
        raise ValueError(
            f"{last}: no evaluation by --decode {decode}. Take another --name, and run it again with that."
        )
    record = dict(records["test", decode])
    for name, metric in METRICS.items():
        source = ("test", "greedy") if metric.written else ("adherence", decode)
        if (metric.written or metric.when == "adherence") and name in records.get(source, {}):
            record[name] = records[source][name]
    test = pq.read_table(folder / "examples" / "test.parquet", columns=["example_id", "user", "target_rating"])
    about = {row["example_id"]: row for row in test.to_pylist()}
    in_test = (pc.field("decode") == decode) & pc.field("example_id").isin(list(about))
    made = pq.read_table(last / "predictions.parquet").filter(in_test)
    rows = [about[example] for example in made["example_id"].to_pylist()]
    ratings = np.array([row["target_rating"] for row in rows], dtype=np.float64)  # None is NaN
    items = pq.read_table(folder / "catalogue.parquet", columns=["title", "popularity"])
    never = cold(made, items["title"].to_pylist(), items["popularity"].to_numpy())
    return Cell(method, seed, record, made, [row["user"] for row in rows], ratings, never)


def finished_phases(cell: Path) -> dict[str, int]:
    """The finished phases of a cell, and the time at which each was finished."""
    return {str(path): path.stat().st_mtime_ns for path in cell.glob("*/*/DONE")}


def account(known: dict[str, Any] | None, attempt: dict[str, Any], made: bool) -> dict[str, Any]:
    """Add up the seconds of all attempts at a cell; one that made no phase of a finished cell does not count."""
    if known is None or (known.get("finished") and not made):
        return known or attempt
    both = {"seconds": known["seconds"] + attempt["seconds"], "memory": max(known["memory"], attempt["memory"])}
    return both | {"finished": attempt["finished"]}


def read_used(folder: Path) -> dict[str, Any]:
    """Return the resources that the cells took so far, by their names; ValueError if the file is damaged."""
    path, remedy = folder / USED, "Remove it: finished cells stay, and only their seconds and memory are lost."
    return read_json(path, remedy) if path.exists() else {}


def start(command: Sequence[str], log: IO[str]) -> subprocess.Popen:
    """Start the process of a cell, which gets SIGTERM when this process is killed, so that no cell outlives it."""

    def end_with_parent() -> None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    ending: dict[str, Any] = {"start_new_session": True, "preexec_fn": end_with_parent}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **ending)


def watch(process: subprocess.Popen) -> int:
    """Wait for a cell; return the most bytes that its processes held at once, without shared memory."""
    import psutil

    most = 0
    while process.poll() is None:
        try:
            own = psutil.Process(process.pid)
            sizes = [one.memory_info() for one in (own, *own.children(recursive=True))]
            most = max(most, sum(size.rss - getattr(size, "shared", 0) for size in sizes))
        except psutil.NoSuchProcess:
            pass
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
    return most
