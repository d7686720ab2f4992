"""Hits and gains of the rows whose target is a title of the catalogue that training never saw."""

from collections.abc import Callable

import numpy as np

from rayrec.metrics.base import Metric
from rayrec.metrics.hit_ratio import HR, hits
from rayrec.metrics.ndcg import NDCG, gains
from rayrec.metrics.outcome import Answers


def of_cold(of_rows: Callable[[Answers, int], np.ndarray]) -> Callable[[Answers, int], np.ndarray]:
    """Return the same values, (N,) float64, NaN for rows of other targets, and for all where none are known."""

    def values(answers: Answers, k: int) -> np.ndarray:
        value_N = of_rows(answers, k)
        return np.where(answers.cold_N, value_N, np.nan) if len(answers.cold_N) else np.full(len(value_N), np.nan)

    return values


HR_COLD = Metric(
    "HR_cold",
    "up",
    of_rows=of_cold(hits),
    unit=HR.unit,
    when="cold",
    count="N_cold",
    about="HR of users whose next title training never saw",
)
NDCG_COLD = Metric(
    "NDCG_cold", "up", of_rows=of_cold(gains), unit=NDCG.unit, share=True, when="cold", count="N_cold", brief=False
)
