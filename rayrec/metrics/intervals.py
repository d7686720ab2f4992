"""Intervals and tests over users: bootstrap for means, jackknife for metrics of all lists, Holm for tables.

Users are resampled, not rows, because the rows of one user are not independent.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

#: Resamples times users that are drawn at once: 2²¹ indices of 8 bytes are 16 MiB.
_CELLS = 2**21
#: The smallest p-value is 2/(1 + RESAMPLES), and must stay small after a correction for many tests.
RESAMPLES = 20_000


#: Rows with a value other than the rest below which the percentile bootstrap covers less than it says: 86 % at two.
FEW = 20


class Interval(NamedTuple):
    """An estimate and its interval, None where fewer than two users leave it undefined; ``p`` of no difference."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def bootstrap_means(values_NM: np.ndarray, users: Sequence[str], seed: int) -> list[Interval]:
    """Means over rows with 95 % percentile bootstrap intervals over users (Efron and Tibshirani 1993, chapter 13).

    Each resample draws as many users as there are, with replacement, and takes the means over all their rows. The M
    columns, statistics such as ``Metric.of_rows`` gives, share the draws; equal seeds and users give equal draws. A NaN
    is a row that does not count in its column. For paired differences, ``p`` is that of a mean of 0, two-sided: with
    the resampled means d*, min(1, 2·(1 + min(#{d* ≤ 0}, #{d* ≥ 0}))/(1 + resamples)), so it is never 0, and 1 where all
    values are 0. Returns M intervals, None of a column without rows. Raises ValueError: ``values_NM`` and ``users`` (of
    each row) differ in length, or a value is infinite.
    """
    values_NM = np.asarray(values_NM, dtype=np.float64)
    if len(values_NM) != len(users) or np.isinf(values_NM).any():
        raise ValueError(
            f"Found {len(values_NM)} values, {int(np.isinf(values_NM).sum())} not finite, for {len(users)} "
            "users. Give finite values and one user for each row."
        )
    if not len(users):
        return [Interval(None)] * values_NM.shape[1]
    known_NM = ~np.isnan(values_NM)
    means = [
        float(one[known].mean()) if known.any() else None for one, known in zip(values_NM.T, known_NM.T, strict=True)
    ]
    names, user_N = np.unique(np.asarray(users, dtype=object), return_inverse=True)
    if len(names) < 2:
        return [Interval(mean) for mean in means]
    # By user: the sum of each column, and the number of rows that count, once for columns in which the same do.
    counts_NC, own_M = np.unique(known_NM, axis=1, return_inverse=True)
    columns = [*np.where(known_NM, values_NM, 0).T, *counts_NC.T.astype(np.float64)]
    sums_US = np.stack([np.bincount(user_N, weights=column) for column in columns], axis=1)

    def resampled(user_RU: np.ndarray, axis: int) -> np.ndarray:
        shifted_RU = user_RU + np.arange(len(user_RU))[:, None] * len(names)
        times_RU = np.bincount(shifted_RU.ravel(), minlength=user_RU.size).reshape(user_RU.shape)
        sums_RS = times_RU.astype(np.float64) @ sums_US
        with np.errstate(invalid="ignore"):  # a resample may hold no row that counts
            return (sums_RS[:, : len(own_M)] / sums_RS[:, len(own_M) + own_M.ravel()]).T

    from scipy import stats  # takes half a second

    with warnings.catch_warnings():
        # A resample may hold no row that counts; scipy then names BCa intervals, which these are not.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
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
    made: list[Interval] = []
    for mean, drawn_R, low, high in zip(means, found.bootstrap_distribution, *found.confidence_interval, strict=True):
        if mean is None:
            made.append(Interval(None))
            continue
        if math.isnan(low):
            low, high = np.nanquantile(drawn_R, [0.025, 0.975])
        tail = min(np.count_nonzero(~(drawn_R > 0)), np.count_nonzero(~(drawn_R < 0)))
        made.append(Interval(mean, float(low), float(high), min(1.0, 2 * (1 + tail) / (1 + RESAMPLES))))
    return made


def wilson(share: float, rows: float) -> tuple[float, float]:
    """95 % interval of a share of independent rows (Wilson 1927), which holds at few hits and at none."""
    z = float(ndtri(0.975))
    center, reach = share + z**2 / (2 * rows), z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    low, high = ((center + side * reach) / (1 + z**2 / rows) for side in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def of_few(found: Interval, value_N: np.ndarray, users: Sequence[str], weight_N: np.ndarray | None = None) -> Interval:
    """Take Wilson's interval for a mean of values from 0 to 1 where fewer than FEW rows are above 0, or below 1.

    The rows of a user may not be independent. They count as rows/d, d = max(1, variance of the users' sums/variance of
    independent rows), and as one for each user where that variance is 0. A value between 0 and 1 varies less than a
    share, so the interval is then too wide rather than too narrow. Rows with a ``weight`` count as (Σw)²/Σw².
    """
    known_N = ~np.isnan(value_N)
    weight_N = np.ones(len(value_N))[known_N] if weight_N is None else weight_N[known_N]
    value_N, user_N = value_N[known_N], np.asarray(users, dtype=object)[known_N]
    if found.low is None or not len(value_N) or value_N.min() < 0 or value_N.max() > 1:
        return found
    if min(np.count_nonzero(value_N), np.count_nonzero(value_N < 1)) >= FEW:
        return found
    names, number_N = np.unique(user_N, return_inverse=True)
    share = float(np.average(value_N, weights=weight_N))
    squares = float(np.square(weight_N).sum())
    rows, alone = float(weight_N.sum()) ** 2 / squares, squares * share * (1 - share)
    together = np.square(np.bincount(number_N, weights=weight_N * (value_N - share))).sum()
    low, high = wilson(share, rows / max(1.0, together / alone) if alone else len(names))
    return found._replace(low=low, high=high)


def jackknife(
    value: float | None, without_U: np.ndarray, ends: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """95 % interval of a statistic from its values without each user in turn (Efron and Tibshirani 1993, chapter 11).

    value ± z·se, se² = (U − 1)/U · Σ_u (without_u − mean)². For statistics that count distinct items: a bootstrap draws
    users twice, and copies bring no new item, so it would be below the value. The value is not corrected for bias,
    because such a metric is a property of N rows and not an estimate of a limit. The interval is cut at the ``ends`` of
    what the statistic can be.
    """
    users = len(without_U)
    if value is None or users < 2 or not np.isfinite(without_U).all():
        return Interval(value)
    error = np.sqrt((users - 1) / users * np.square(without_U - without_U.mean()).sum())
    reach = float(ndtri(0.975) * error)
    return Interval(value, max(ends[0], value - reach), min(ends[1], value + reach))


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
