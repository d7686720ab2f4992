"""Intervals and tests over users: bootstrap for means, jackknife for DivRatio, Holm for tables.

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


def bootstrap_means(
    values_NM: np.ndarray, users: Sequence[str], seed: int, resamples: int = 20_000, level: float = 0.95
) -> list[Interval]:
    """Means over rows with percentile bootstrap intervals over users (Efron and Tibshirani 1993, chapter 13).

    Each resample draws as many users as there are, with replacement, and takes the means over all their rows. The M
    columns share the draws, which cost far more than the means.

    Args:
        values_NM: one row per evaluated row, one column per statistic, such as :func:`rayrec.metrics.per_row` gives.
        users: the user of each row.
        seed: of the draws; equal seeds and users give equal draws, so intervals of several methods are comparable.
        resamples: the smallest p-value is 2/(1 + resamples), and must stay small after a correction for many tests.

    Returns:
        M times (mean, low, high); all None without rows, low and high None for one user.

    Raises:
        ValueError: ``values_NM`` and ``users`` differ in length, or a value is not finite.
    """
    means_M, drawn_RM = _bootstrap(values_NM, users, seed, resamples)
    return [Interval(value, *_percentiles(d, level)) for value, d in zip(means_M, drawn_RM.T, strict=True)]


def paired_bootstrap(
    a_NM: np.ndarray, b_NM: np.ndarray, users: Sequence[str], seed: int, resamples: int = 20_000, level: float = 0.95
) -> list[Difference]:
    """Means of a − b over the same rows, with their intervals over users and two-sided p-values.

    p = min(1, 2·(1 + min(#{d* ≤ 0}, #{d* ≥ 0}))/(1 + resamples)) over the resampled differences d*, so it is never 0,
    and 1 where a and b are equal. It is None, as the interval, for fewer than two users. Arguments and errors as
    :func:`bootstrap_means`.
    """
    if np.shape(a_NM) != np.shape(b_NM):
        raise ValueError(
            f"Found {len(a_NM)} and {len(b_NM)} values, wanted two values of the same rows, in the same order."
        )
    means_M, drawn_RM = _bootstrap(np.asarray(a_NM, dtype=np.float64) - b_NM, users, seed, resamples)
    made = []
    for value, d in zip(means_M, drawn_RM.T, strict=True):
        tail = min(int((d <= 0).sum()), int((d >= 0).sum()))
        p = min(1.0, 2 * (1 + tail) / (1 + resamples)) if len(d) else None
        made.append(Difference(value, *_percentiles(d, level), p))
    return made


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


def _bootstrap(
    values_NM: np.ndarray, users: Sequence[str], seed: int, resamples: int
) -> tuple[list[float | None], np.ndarray]:
    """Mean of every column, and of each resample of users, (resamples, M).

    Fewer than two users, whom resampling cannot vary, give (0, M); no rows give means of None.
    """
    values_NM = np.asarray(values_NM, dtype=np.float64)
    if len(values_NM) != len(users) or not np.isfinite(values_NM).all():
        raise ValueError(
            f"Found {len(values_NM)} values, {int((~np.isfinite(values_NM)).sum())} not finite, for {len(users)} "
            "users. Give finite values and one user for each row."
        )
    if not len(users):
        return [None] * values_NM.shape[1], np.empty((0, values_NM.shape[1]))
    names, user_N = np.unique(np.asarray(users, dtype=object), return_inverse=True)
    columns = [*values_NM.T, np.ones(len(users))]
    # By user: the sum of each column, and the number of rows.
    sums_US = np.stack([np.bincount(user_N, weights=column) for column in columns], axis=1)
    means_M = values_NM.mean(axis=0).tolist()
    if len(names) < 2:
        return means_M, np.empty((0, values_NM.shape[1]))
    generator = np.random.default_rng(seed)
    made, at_once = [], max(1, _CELLS // len(names))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn_RU = generator.integers(len(names), size=(rows, len(names)))
        drawn_RU += np.arange(rows)[:, None] * len(names)
        times_RU = np.bincount(drawn_RU.ravel(), minlength=drawn_RU.size).reshape(drawn_RU.shape)
        sums_RS = times_RU.astype(np.float64) @ sums_US
        made.append(sums_RS[:, :-1] / sums_RS[:, -1:])
    return means_M, np.concatenate(made)


def _percentiles(drawn_R: np.ndarray, level: float) -> tuple[float | None, float | None]:
    if not len(drawn_R):
        return None, None
    low, high = np.quantile(drawn_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
