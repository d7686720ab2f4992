"""Diversity ratio: how many different items are recommended. It falls with the number of rows: print N beside it."""

from collections.abc import Sequence

import numpy as np

from rayrec.metrics.base import Metric
from rayrec.metrics.outcome import Answers


def div_ratio(answers: Answers, k: int) -> float | None:
    """DivRatio@k = distinct items/M, M = items returned in the first k places of all lists (≤ kN); None for M = 0.

    Source: SPRec section 5.1.3, whose denominator is kN; the two agree where all lists are full.
    """
    returned_I = answers.returned(k)
    return float((returned_I > 0).sum() / returned_I.sum()) if returned_I.sum() else None


def without_users(answers: Answers, users: Sequence[str], k: int) -> np.ndarray:
    """DivRatio@k without each user: an item leaves with a user whose lists hold all its occurrences."""
    count_UI = answers.by_user(users, k)
    total_I = count_UI.sum(axis=0)
    left_U = total_I.sum() - count_UI.sum(axis=1)
    own = count_UI.tocoo()
    lost_U = np.bincount(own.row[own.data == total_I[own.col]], minlength=len(left_U))
    return np.where(left_U > 0, ((total_I > 0).sum() - lost_U) / np.maximum(left_U, 1), np.nan)


DIV_RATIO = Metric(
    "DivRatio",
    "up",
    of_lists=div_ratio,
    unit="distinct items / items",
    without=without_users,
    share=True,
    about="different titles",
)
