"""Losses of a policy and of a beam search on the way to titles; about whole lists, so they have no k."""

import numpy as np

from rayrec.metrics.base import Metric
from rayrec.metrics.outcome import Answers


def lost_mass(answers: Answers, k: int) -> np.ndarray:
    """Return 1 - Σ π/Σ π_C over the titles of each list, for π over the vocabulary and π_C over the catalogue.

    Over the whole catalogue it is the probability of all strings that are no title.
    """
    return 1 - answers.kept_N


def lost_targets(answers: Answers, k: int) -> np.ndarray:
    """Return 1 where the target is not in the list and scores more than its last title, else 0."""
    return (answers.rank_N == 0) * answers.ahead_N if len(answers.ahead_N) else answers.ahead_N


LOST_MASS = Metric("LostMass", "down", of_rows=lost_mass, unit="share of probability", share=True, when="measured")
LOST_TARGETS = Metric("LostTargets", "down", of_rows=lost_targets, when="measured", count="N_searched")
