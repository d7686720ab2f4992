"""Intervals and tests over users: bootstrap for means, jackknife for metrics of all lists, Holm for tables.

Users are resampled, not rows, because the rows of one user are not independent.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.special import ndtri

#: Resamples times users that are drawn at once: 2²¹ indices of 8 bytes are 16 MiB.
_CELLS = 2**21
#: The smallest p-value is 2/(1 + RESAMPLES), and must stay small after a correction for many tests.
RESAMPLES = 20_000


class Interval(NamedTuple):
    """An estimate and its interval, None where fewer than two users leave it undefined; ``p`` of no difference."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def bootstrap_means(values_NM: np.ndarray, users: Sequence[str], seed: int) -> list[Interval]:
    """Means over rows with 95 % percentile bootstrap intervals over users (Efron and Tibshirani 1993, chapter 13).

    Each resample draws as many users as there are, with replacement, and takes the means over all their rows. The M
    columns, statistics such as ``Metric.of_rows`` gives, share the draws; equal seeds and users give equal draws. For
    paired differences, ``p`` is that of a mean of 0, two-sided: with the resampled means d*,
    min(1, 2·(1 + min(#{d* ≤ 0}, #{d* ≥ 0}))/(1 + resamples)), so it is never 0, and 1 where all values are 0. Returns M
    intervals, all None without rows. Raises ValueError: ``values_NM`` and ``users`` (of each row) differ in length, or
    a value is not finite.
    """
    values_NM = np.asarray(values_NM, dtype=np.float64)
    if len(values_NM) != len(users) or not np.isfinite(values_NM).all():
        raise ValueError(
            f"Found {len(values_NM)} values, {int((~np.isfinite(values_NM)).sum())} not finite, for {len(users)} "
            "users. Give finite values and one user for each row."
        )
    if not len(users):
        return [Interval(None)] * values_NM.shape[1]
    means = values_NM.mean(axis=0).tolist()
    names, user_N = np.unique(np.asarray(users, dtype=object), return_inverse=True)
    if len(names) < 2:
        return [Interval(mean) for mean in means]
    # By user: the sum of each column, and the number of rows.
    columns = [*values_NM.T, np.ones(len(users))]
    sums_US = np.stack([np.bincount(user_N, weights=column) for column in columns], axis=1)

    def resampled(user_RU: np.ndarray, axis: int) -> np.ndarray:
        shifted_RU = user_RU + np.arange(len(user_RU))[:, None] * len(names)
        times_RU = np.bincount(shifted_RU.ravel(), minlength=user_RU.size).reshape(user_RU.shape)
        sums_RS = times_RU.astype(np.float64) @ sums_US
        return (sums_RS[:, :-1] / sums_RS[:, -1:]).T

    found = stats.bootstrap(
        (np.arange(len(names)),),
        resampled,
        n_resamples=RESAMPLES,
        batch=max(1, _CELLS // len(names)),
        vectorized=True,
        method="percentile",
        confidence_level=0.95,
        rng=np.random.default_rng(seed),
    )
    drawn_MR, (low_M, high_M) = found.bootstrap_distribution, found.confidence_interval
    tail_M = np.minimum((drawn_MR <= 0).sum(axis=1), (drawn_MR >= 0).sum(axis=1))
    p_M = np.minimum(1.0, 2 * (1 + tail_M) / (1 + RESAMPLES))
    return list(map(Interval, means, low_M.tolist(), high_M.tolist(), p_M.tolist()))


def jackknife(value: float | None, without_U: np.ndarray) -> Interval:
    """95 % interval of a statistic from its values without each user in turn (Efron and Tibshirani 1993, chapter 11).

    value ± z·se, se² = (U − 1)/U · Σ_u (without_u − mean)². For statistics that count distinct items: a bootstrap draws
    users twice, and copies bring no new item, so it would be below the value. The value is not corrected for bias,
    because such a metric is a property of N rows and not an estimate of a limit.
    """
    users = len(without_U)
    if value is None or users < 2 or not np.isfinite(without_U).all():
        return Interval(value)
    error = np.sqrt((users - 1) / users * np.square(without_U - without_U.mean()).sum())
    reach = float(ndtri(0.975) * error)
    return Interval(value, value - reach, value + reach)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction of the p-values of one table, in their order; ValueError outside 0..1.

    The i-th smallest of m becomes max_{j ≤ i} min(1, (m − j + 1)·p_(j)) (Holm 1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"Found p-values {p.tolist()}, wanted numbers from 0 to 1: leave undefined comparisons out.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, np.arange(len(p), 0, -1) * p[order]))
    return adjusted
