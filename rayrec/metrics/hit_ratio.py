"""Hit ratio: how often the target is in the list."""

import numpy as np

from rayrec.metrics.base import Metric
from rayrec.metrics.outcome import Answers


def hits(answers: Answers, k: int) -> np.ndarray:
    """1 where the target is among the first k places, else 0: (N,) float64. A rank of 0 (absent) is no hit.

    HR@k = (1/N) Σ_i [rank_i ≤ k], over all N rows, empty lists included. Source: SPRec section 5.1.3.
    """
    return ((answers.rank_N >= 1) & (answers.rank_N <= k)).astype(np.float64)


HR = Metric("HR", "up", of_rows=hits, about="next title in the list")
