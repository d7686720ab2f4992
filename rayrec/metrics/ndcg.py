"""Normalised discounted cumulative gain with one relevant item."""

from __future__ import annotations

import numpy as np

from rayrec.metrics.outcome import Outcome


def gains(rank_N: np.ndarray, k: int) -> np.ndarray:
    """1/log2(rank + 1) where rank ≤ ``k``, else 0; (N,) float64. A rank of 0 (absent) gains nothing."""
    found = (rank_N >= 1) & (rank_N <= k)
    return np.where(found, 1 / np.log2(np.where(found, rank_N, 1) + 1), 0.0)


def ndcg(outcome: Outcome, k: int) -> float | None:
    """NDCG@k = (1/N) Σ_i [rank_i ≤ k]/log2(rank_i + 1), over all N rows; the ideal gain of one target is 1.

    Returns None for N = 0, and 0 when every target is absent. Source: SPRec section 5.1.3; Järvelin and Kekäläinen
    2002.
    """
    return float(gains(outcome.rank_N, k).mean()) if len(outcome.rank_N) else None
