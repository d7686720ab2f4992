"""Genre unfairness: how far the genres of the lists are from those of the histories."""

import numpy as np

from rayrec.metrics.base import Metric
from rayrec.metrics.outcome import Outcome


def genre_share(count_I: np.ndarray, genre_IG: np.ndarray) -> np.ndarray | None:
    """Share of each selected genre in the mass on selected genres, (G,); None where there is no such mass.

    An item's weight is split evenly over its selected genres; items without one add nothing.
    """
    mass_G = count_I @ genre_IG
    return mass_G / mass_G.sum() if mass_G.sum() > 0 else None


def mgu(outcome: Outcome, k: int) -> float | None:
    """MGU@k = mean over all selected genres of |d_g|, d_g = GP_g − GH_g (positive: over-recommended).

    GP is the genre share of the first k places of all lists, GH that of the rows' histories; None where either has no
    mass on selected genres. Source: Jiang et al. 2024 (IFairLRS), as used in SPRec section 5.1.3.
    """
    d_G = _difference(outcome, k)
    return None if d_G is None else float(np.abs(d_G).mean())


def dgu(outcome: Outcome, k: int) -> float | None:
    """DGU@k = max_g d_g − min_g d_g ≥ 0, d_g as in :func:`mgu`, and None in the same cases."""
    d_G = _difference(outcome, k)
    return None if d_G is None else float(d_G.max() - d_G.min())


def _difference(outcome: Outcome, k: int) -> np.ndarray | None:
    predicted_G = genre_share(outcome.returned(k), outcome.genre_IG)
    history_G = genre_share(outcome.history_I, outcome.genre_IG)
    return None if predicted_G is None or history_G is None else predicted_G - history_G


MGU = Metric(
    "MGU",
    "down",
    of_lists=mgu,
    unit="mean |list share − history share| of a genre",
    about="genre bias",
)
DGU = Metric("DGU", "down", of_lists=dgu, unit="range of list share − history share of a genre", brief=False)
