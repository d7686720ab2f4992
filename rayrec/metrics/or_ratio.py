"""Over-recommendation ratio: how much of all lists the three most frequent items take."""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
import pyarrow as pa

from rayrec.metrics.outcome import Outcome


def or_ratio(outcome: Outcome, k: int) -> float | None:
    """ORRatio@k = occurrences of the 3 most frequent items/M, M = items returned in the first k places of all lists.

    Returns None for M = 0, and 1 where at most 3 items are ever returned. Source: SPRec section 5.1.3.
    """
    returned_I = outcome.returned(k)
    return float(np.sort(returned_I)[-3:].sum() / returned_I.sum()) if returned_I.sum() else None


def or_ratio_without(predictions: pa.Table, users: list[str], k: int) -> np.ndarray:
    """ORRatio@k without the rows of each user in turn, (U,), sorted by user, for ``intervals.jackknife``.

    ``users`` names the user of each of the N rows. Only items of the user lose occurrences, so the three most frequent
    of the rest are among as many of the most frequent of all as the user has items, and three more. NaN where nothing
    is left.
    """
    own: dict[str, Counter[str]] = {user: Counter() for user in sorted(set(users))}
    for user, titles in zip(users, predictions["titles"].to_pylist(), strict=True):
        own[user].update(titles[:k])
    returned = Counter[str]()
    for counts in own.values():
        returned.update(counts)
    order, everything, made = returned.most_common(), returned.total(), []
    for counts in own.values():
        top = heapq.nlargest(3, (n - counts[title] for title, n in order[: len(counts) + 3]))
        left = everything - counts.total()
        made.append(sum(top) / left if left else np.nan)
    return np.array(made)
