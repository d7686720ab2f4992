"""A metric: its name, its direction, and the function that computes it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rayrec.metrics.outcome import Answers

#: Unit of a mean over rows that each are 0 or 1.
ROWS = "share of rows"


@dataclass(frozen=True)
class Metric:
    """A row of :data:`rayrec.metrics.METRICS`, with either ``of_rows`` or ``of_lists``."""

    name: str
    better: Literal["up", "down"]
    #: The value of each row at k, (N,) float64, NaN for a row that does not count; the metric is their mean.
    of_rows: Callable[[Answers, int], np.ndarray] | None = None
    #: The metric of all lists at k, from an Outcome; None where it is undefined.
    of_lists: Callable[[Any, int], float | None] | None = None
    unit: str = ROWS
    #: The records that have it: all; those with a target that training never saw, over these rows; those of a choice
    #: from candidates; those of the split `adherence`; those for which it was measured. The last three are not about
    #: the first k titles, so their keys have no k.
    when: Literal["always", "cold", "candidates", "adherence", "measured"] = "always"
    #: ``of_lists`` without the rows of each user in turn, given the user of each row: (U,), sorted by user, NaN where
    #: nothing is left. It makes a jackknife interval.
    without: Callable[[Answers, Sequence[str], int], np.ndarray] | None = None
    least: float = 0.0  #: the value below which that interval does not hold, and none is given
    share: bool = False  #: it lies between 0 and 1, as the share of rows does anyway
    count: str = ""  #: key of the number of rows that count, where that is not N
    written: bool = False  #: a comparison takes it from the written answer, where candidates were ranked as well
    tested: bool = False  #: a comparison tests it although it is of a choice from candidates, and not of every list
    brief: bool = True  #: the narrow table of the terminal shows it
    about: str = ""  #: what it says, in a few words for the line under a table

    @property
    def arrow(self) -> str:
        """The direction in which it is better."""
        return "↑" if self.better == "up" else "↓"

    @property
    def binomial(self) -> bool:
        """Whether it is a share p of rows, with a binomial interval."""
        return self.of_rows is not None and self.unit == ROWS

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value that it can have."""
        return (0.0, 1.0) if self.share or self.binomial else (-math.inf, math.inf)

    @property
    def change_ends(self) -> tuple[float, float]:
        """The least and the largest change that it can have."""
        low, high = self.ends
        return low - high, high - low

    @property
    def at_k(self) -> bool:
        """Whether it is about the first k titles."""
        return self.when in ("always", "cold")

    def key(self, k: int) -> str:
        """Its key in a record of ``metrics.jsonl``."""
        return f"{self.name}@{k}" if self.at_k else self.name

    def compute(self, outcome: Answers, k: int) -> float | None:
        """The metric at k; None where no row counts, or where ``of_lists`` is undefined."""
        if self.of_rows is None:
            return self.of_lists(outcome, k) if self.of_lists else None
        value_N = self.of_rows(outcome, k)
        known = value_N[~np.isnan(value_N)]
        return float(known.mean()) if len(known) else None
