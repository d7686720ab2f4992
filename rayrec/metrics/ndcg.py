"""Normalised discounted cumulative gain with one relevant item."""

import numpy as np

from rayrec.metrics.base import Metric
from rayrec.metrics.hit_ratio import hits
from rayrec.metrics.outcome import Answers


def gains(answers: Answers, k: int) -> np.ndarray:
    """1/log2(rank + 1) where 1 ≤ rank ≤ k, else 0: (N,) float64.

    NDCG@k is their mean over all N rows (SPRec section 5.1.3; Järvelin and Kekäläinen 2002).
    """
    return hits(answers, k) / np.log2(np.maximum(answers.rank_N, 1) + 1)


NDCG = Metric("NDCG", "up", of_rows=gains, unit="mean gain of a row", share=True, about="weighted by its place")
