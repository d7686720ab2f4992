"""Differences between the first and the last policy of a run, with intervals over users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.data.schema import places
from rayrec.metrics import Metric, answers
from rayrec.metrics.intervals import FEW, Interval, jackknife
from rayrec.metrics.outcome import Answers
from rayrec.report.lists import ends
from rayrec.report.rows import Row, default_k, shown


class Change(NamedTuple):
    """A metric of the first and of the last policy, and their difference with its 95 % interval, None where unknown."""

    metric: Metric
    key: str
    first: float
    last: float
    difference: Interval

    @property
    def verdict(self) -> str:
        """Whether it became better, as far as the interval tells; empty without one."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return ""
        if low <= 0 <= high:
            return "no clear change"
        return "better" if (low > 0) == (self.metric.better == "up") else "worse"


def changes(folder: Path, rows: Sequence[Row]) -> list[Change]:
    """Compare the first and the last policy on the test rows of a run, by its ``rows`` of metrics.jsonl; none without
    two.

    The differences are paired, with a jackknife over users. Metrics without one have no interval, nor have those for
    which it does not hold: of values in which few rows differ, and ``Metric.least``. Those of diversity come first.
    Raises ValueError: a file of the run is missing or damaged.
    """
    if (tested := ends(rows)) is None:
        return []
    k = default_k(tested)
    metrics = [m for m in shown(tested, [k]) if m.brief and m.when == "always"]
    metrics = [m for m in metrics if None not in (tested[0].get(m.key(k)), tested[1].get(m.key(k)))]
    try:
        examples = pq.read_table(folder / "examples" / "test.parquet", columns=["example_id", "user"])
        first, last = (_answers(folder / row["phase"] / "predictions.parquet", row, examples) for row in tested)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{folder}: intervals of what changed are left out. ({error})") from error
    users, found = examples["user"].to_pylist(), []
    for metric in sorted(metrics, key=lambda metric: metric.of_rows is not None):
        values = tested[0][metric.key(k)], tested[1][metric.key(k)]
        difference = _difference(metric, k, first, last, users, values)
        found.append(Change(metric, metric.key(k), *values, difference))
    return found


def _answers(path: Path, row: Row, examples: pa.Table) -> Answers:
    """The lists of a policy in the order of ``examples``."""
    columns = ["example_id", "target", "titles"]
    made = pq.read_table(path, columns=columns, filters=pc.field("decode") == row["decode"])
    at = places(examples["example_id"].combine_chunks(), made["example_id"].combine_chunks())
    if (at < 0).any():
        raise OSError(f"{path} lacks test rows")
    return answers(made.take(pa.array(at)))


def _difference(
    metric: Metric, k: int, first: Answers, last: Answers, users: Sequence[str], values: tuple[float, float]
) -> Interval:
    change = values[1] - values[0]
    if metric.of_rows:
        gap_N = metric.of_rows(last, k) - metric.of_rows(first, k)
        if np.count_nonzero(gap_N) < FEW:
            return Interval(change)
        _, user_N = np.unique(np.asarray(users, dtype=object), return_inverse=True)
        sum_U, rows_U = np.bincount(user_N, weights=gap_N), np.bincount(user_N)
        left_U = len(gap_N) - rows_U
        without_U = np.where(left_U > 0, (gap_N.sum() - sum_U) / np.maximum(left_U, 1), np.nan)
        return jackknife(change, without_U, metric.change_ends)
    if metric.without is None or min(values) < metric.least:
        return Interval(change)
    return jackknife(change, metric.without(last, users, k) - metric.without(first, users, k), metric.change_ends)
