"""Metrics of a choice from candidates, beside those of its lists: all are about the first place (S-DPO, RecPO)."""

import numpy as np

from rayrec.data.scale import DISLIKED, LIKED
from rayrec.metrics.base import Metric
from rayrec.metrics.hit_ratio import hits
from rayrec.metrics.outcome import Answers


def valid(answers: Answers, k: int) -> np.ndarray:
    """1 where the answer is exactly one candidate, else 0 (S-DPO section 4.1)."""
    return (answers.length_N > 0).astype(np.float64)


def liked(answers: Answers, k: int) -> np.ndarray:
    """Hits of the rows whose target is rated 4 or more, on which RecPO evaluates."""
    return np.where(answers.rating_N >= LIKED, hits(answers, 1), np.nan)


def avoided(answers: Answers, k: int) -> np.ndarray:
    """1 where the answer is one candidate and not the target, of rows whose target is rated 2 or less (RecPO D.4)."""
    return np.where(answers.rating_N <= DISLIKED, valid(answers, 1) - hits(answers, 1), np.nan)


VALID = Metric("ValidRatio", "up", of_rows=valid, when="candidates", written=True)
HR_LIKED = Metric("HR@1_liked", "up", of_rows=liked, when="candidates", count="N_liked", tested=True)
AVOIDANCE = Metric("AvoidanceRate", "up", of_rows=avoided, when="candidates", count="N_disliked")
#: Of the rows of :func:`rayrec.data.candidates.adherence_rows` (RecPO D.4).
ADHERENCE = Metric("AdherenceRate", "up", of_rows=lambda answers, k: hits(answers, 1), when="adherence")
