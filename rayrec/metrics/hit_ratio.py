"""Hit ratio: how often the target is in the list."""

from __future__ import annotations

import numpy as np

from rayrec.metrics.outcome import Outcome


def hits(rank_N: np.ndarray, k: int) -> np.ndarray:
    """1 where the target stands among the first ``k``, else 0; (N,) float64. A rank of 0 (absent) is no hit."""
    return ((rank_N >= 1) & (rank_N <= k)).astype(np.float64)


def hit_ratio(outcome: Outcome, k: int) -> float | None:
    """HR@k = (1/N) Σ_i [rank_i ≤ k], over all N rows, empty lists included.

    Returns None for N = 0, and 0 when every target is absent. Source: SPRec section 5.1.3.
    """
    return float(hits(outcome.rank_N, k).mean()) if len(outcome.rank_N) else None
