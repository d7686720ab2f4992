"""Diversity ratio: how many different items are recommended. It falls with the number of rows: print N beside it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrec.metrics.outcome import Outcome


def div_ratio(outcome: Outcome, k: int) -> float | None:
    """DivRatio@k = distinct items/M, M = items returned in the first k places of all lists (≤ kN).

    Returns None for M = 0. Source: SPRec section 5.1.3, whose denominator is kN; the two agree where all lists are
    full.
    """
    returned_I = outcome.returned(k)
    return float((returned_I > 0).sum() / returned_I.sum()) if returned_I.sum() else None


def div_ratio_without(predictions: pa.Table, users: list[str], k: int) -> np.ndarray:
    """DivRatio@k without the rows of each user in turn, (U,), sorted by user, for ``intervals.jackknife``.

    ``users`` names the user of each of the N rows. An item is lost with a user when all its occurrences are that
    user's, so one pass serves all users. NaN where nothing is left.
    """
    names, user_N = np.unique(np.asarray(users, dtype=object), return_inverse=True)
    lists = [titles[:k] for titles in predictions["titles"].to_pylist()]
    _, item_M = np.unique(np.array([title for titles in lists for title in titles], dtype=object), return_inverse=True)
    user_M = np.repeat(user_N, [len(titles) for titles in lists])
    returned_I = np.bincount(item_M)
    pairs, count = np.unique(np.stack([user_M, item_M], axis=1), axis=0, return_counts=True)
    lost_U = np.bincount(pairs[count == returned_I[pairs[:, 1]], 0], minlength=len(names))
    left_U = len(item_M) - np.bincount(user_M, minlength=len(names))
    return np.where(left_U > 0, (len(returned_I) - lost_U) / np.maximum(left_U, 1), np.nan)
