"""Over-recommendation ratio: how much of all lists the three most frequent items take."""

from __future__ import annotations

import numpy as np

from rayrec.metrics.outcome import Outcome


def or_ratio(outcome: Outcome, k: int) -> float | None:
    """ORRatio@k = occurrences of the 3 most frequent items/M, M = items returned in the first k places of all lists.

    Returns None for M = 0, and 1 where at most 3 items are ever returned. Source: SPRec section 5.1.3.
    """
    returned_I = outcome.returned(k)
    return float(np.sort(returned_I)[-3:].sum() / returned_I.sum()) if returned_I.sum() else None
