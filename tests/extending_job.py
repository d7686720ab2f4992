"""jobs/sprec.py with a loss, a sampler, a metric, a source and an engine of a script's own: one row each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa

from rayrec.data.sources import SOURCES, Source
from rayrec.data.sources.reading import Raw, Rejects, interactions, item_frame, read_lines
from rayrec.generation import ENGINES
from rayrec.generation.torch import TorchEngine
from rayrec.metrics import METRICS, Metric
from rayrec.metrics.outcome import Answers
from rayrec.negatives import NEGATIVES, Sampler
from rayrec.negatives.draw import Draw, contexts, table
from rayrec.objectives import OBJECTIVES, Objective, Pairs, setting
from rayrec.objectives.pairs import log_ratios, mean_k

if TYPE_CHECKING:
    from torch import Tensor

    from rayrec.data.catalogue import Catalogue


def read(folder: Path) -> Raw:
    """Read lines ``user|title|seconds``."""
    rejects, path = Rejects(), folder / "plays.mine"
    cells = [(row, *line.split("|")) for row, line in read_lines(path)]
    rows = pl.DataFrame(cells, ["row", "user", "item", "timestamp"], orient="row")
    titles = rows["item"].unique(maintain_order=True)
    items = item_frame([(row, title, title, []) for row, title in enumerate(titles, 1)], path.name, rejects)
    return Raw(items, path.name, rejects, interactions=interactions(rows, items, path.name, rejects))


@dataclass(frozen=True)
class Hinge(Objective):
    """max(0, room − β h_k), mean over k."""

    beta: float = setting(0.1, "Inverse temperature")
    room: float = setting(1.0, "Reward margin above which mine is 0")

    def __call__(self, pairs: Pairs) -> Tensor:
        delta_B, delta_BK = log_ratios(pairs)
        return mean_k((self.room - self.beta * (delta_B[:, None] - delta_BK)).clamp(min=0), pairs.mask_BK)


def first(examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw) -> pa.Table:
    """The first titles of the catalogue outside history and target."""
    rows = []
    for example in contexts(examples):
        known = {*example["history"], example["target"]}
        titles = [title for title in catalogue.titles if title not in known]
        rows += draw.drawn(example["example_id"], "mine", titles[: draw.k])
    return table(rows)


def reciprocal_ranks(answers: Answers, k: int) -> np.ndarray:
    rank_N = answers.rank_N
    return np.where((rank_N >= 1) & (rank_N <= k), 1 / np.maximum(rank_N, 1), 0.0)


class Mine(TorchEngine):
    """The torch engine by another name."""


SOURCES["mine"] = Source(("plays.mine",), read)
OBJECTIVES["mine"] = Hinge
NEGATIVES["mine"] = Sampler(first, "the first titles of the catalogue")
METRICS["MineMRR"] = Metric("MineMRR", "up", of_rows=reciprocal_ranks, unit="mean over rows")
ENGINES["mine"] = Mine

if __name__ == "__main__":
    from sprec import main

    main()
