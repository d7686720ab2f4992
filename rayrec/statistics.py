"""Intervals and tests over users (METHODS section 8): bootstrap for means, jackknife for DivRatio, Holm for tables.

Users are resampled, not rows, because the rows of one user are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

#: Resamples times users that are drawn at once: 2²¹ indices of 8 bytes are 16 MiB.
_CELLS = 2**21


class Interval(NamedTuple):
    """An estimate with its interval; ``low`` and ``high`` are None where fewer than two users leave it undefined."""

    value: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """A difference of two means with its interval, and the two-sided p-value of no difference."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None


def bootstrap_mean(
    values_N: np.ndarray, users: Sequence[str], seed: int, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean over rows with a percentile bootstrap interval over users (Efron and Tibshirani 1993, chapter 13).

    Each resample draws as many users as there are, with replacement, and takes the mean over all their rows.

    Args:
        values_N: one value per row, such as :func:`rayrec.metrics.per_row` gives.
        users: the user of each row.
        seed: of the draws; equal seeds and users give equal draws, so intervals of several methods are comparable.

    Returns:
        (mean, low, high); all None without rows.

    Raises:
        ValueError: ``values_N`` and ``users`` differ in length, or a value is not finite.
    """
    sums_U, rows_U = _by_user(values_N, users)
    if len(sums_U) == 0:
        return Interval(None, None, None)
    means = _resampled_means(sums_U, rows_U, seed, resamples)
    return Interval(float(np.mean(values_N)), *_percentiles(means, level))


def paired_bootstrap(
    a_N: np.ndarray, b_N: np.ndarray, users: Sequence[str], seed: int, resamples: int = 2000, level: float = 0.95
) -> Difference:
    """Mean of a − b over the same rows, with its interval over users and a two-sided p-value.

    p = min(1, 2·(1 + min(#{d* ≤ 0}, #{d* ≥ 0}))/(1 + resamples)) over the resampled differences d*, so it is never 0,
    and 1 where a and b are equal. It is None, as the interval, for fewer than two users. Errors as
    :func:`bootstrap_mean`.
    """
    if len(a_N) != len(b_N):
        raise ValueError(
            f"Found {len(a_N)} and {len(b_N)} values, wanted two values of the same rows, in the same order."
        )
    difference_N = np.asarray(a_N, dtype=np.float64) - np.asarray(b_N, dtype=np.float64)
    sums_U, rows_U = _by_user(difference_N, users)
    if len(sums_U) == 0:
        return Difference(None, None, None, None)
    means = _resampled_means(sums_U, rows_U, seed, resamples)
    value, (low, high) = float(difference_N.mean()), _percentiles(means, level)
    if means is None:
        return Difference(value, low, high, None)
    tail = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Difference(value, low, high, min(1.0, 2 * (1 + tail) / (1 + resamples)))


def jackknife(value: float | None, without_U: np.ndarray, level: float = 0.95) -> Interval:
    """Interval of a statistic from its values without each user in turn (Efron and Tibshirani 1993, chapter 11).

    value ± z·se, se² = (U − 1)/U · Σ_u (without_u − mean)². For statistics such as DivRatio that count distinct
    items: a bootstrap draws users twice, and copies bring no new item, so it would lie below the value. The value is
    not corrected for bias, because DivRatio is a property of N rows and not an estimate of a limit.

    Args:
        value: the statistic on all rows; None gives an interval of None.
        without_U: the statistic without each user, (U,), such as :func:`rayrec.metrics.div_ratio_without` gives.
    """
    users = len(without_U)
    if value is None or users < 2 or not np.isfinite(without_U).all():
        return Interval(value, None, None)
    error = np.sqrt((users - 1) / users * np.square(without_U - without_U.mean()).sum())
    reach = float(ndtri(0.5 + level / 2) * error)
    return Interval(value, value - reach, value + reach)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction of the p-values of one table, in their order (Holm 1979).

    The i-th smallest of m becomes max_{j ≤ i} min(1, (m − j + 1)·p_(j)). No p-values give an empty array.

    Raises:
        ValueError: a value outside 0..1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"Found p-values {p.tolist()}, wanted numbers from 0 to 1: leave undefined comparisons out.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, np.arange(len(p), 0, -1) * p[order]))
    return adjusted


def _by_user(values_N: np.ndarray, users: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of rows of each user, (U,) each, sorted by user."""
    if len(values_N) != len(users) or not np.isfinite(values_N).all():
        raise ValueError(
            f"Found {len(values_N)} values, {int((~np.isfinite(values_N)).sum())} not finite, for {len(users)} users. "
            "Give one finite value and one user for each row."
        )
    names, user_N = np.unique(np.asarray(users, dtype=object), return_inverse=True)
    return np.bincount(user_N, weights=values_N, minlength=len(names)), np.bincount(user_N, minlength=len(names))


def _resampled_means(sums_U: np.ndarray, rows_U: np.ndarray, seed: int, resamples: int) -> np.ndarray | None:
    """Mean over the rows of each resample of users, (resamples,); None for one user, whom resampling cannot vary."""
    users = len(sums_U)
    if users < 2:
        return None
    generator = np.random.default_rng(seed)
    means, at_once = [], max(1, _CELLS // users)
    for start in range(0, resamples, at_once):
        drawn = generator.integers(users, size=(min(at_once, resamples - start), users))
        means.append(sums_U[drawn].sum(axis=1) / rows_U[drawn].sum(axis=1))
    return np.concatenate(means)


def _percentiles(means: np.ndarray | None, level: float) -> tuple[float | None, float | None]:
    if means is None:
        return None, None
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
