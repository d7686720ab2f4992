"""Intervals and tests over users: hand-computed cases, and why DivRatio is never bootstrapped."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.metrics import METRICS
from rayrec.metrics.intervals import Interval, bootstrap_means, holm, jackknife, of_few, wilson


def bootstrap_mean(values: np.ndarray, users: list[str], seed: int) -> Interval:
    """Of one column."""
    return bootstrap_means(values[:, None], users, seed)[0]


def paired(a: np.ndarray, b: np.ndarray, users: list[str]) -> Interval:
    return bootstrap_mean(a - b, users, seed=0)


def test_bootstrap_of_two_users_has_three_outcomes():
    # Users a (values 0, 0) and b (value 1): resamples aa, ab, ba, bb have means 0, 1/3, 1/3, 1.
    found = bootstrap_mean(np.array([0, 0, 1.0]), ["a", "a", "b"], seed=0)
    assert found[:3] == (pytest.approx(1 / 3), 0, 1)


def test_bootstrap_interval_of_a_proportion():
    # 400 users, 100 hits: mean 0.25, standard error √(0.25·0.75/400) = 0.02165, so 0.25 ± 0.0424.
    values = np.repeat([1.0, 0.0], [100, 300])
    mean, low, high, _ = bootstrap_mean(values, [f"u{i}" for i in range(400)], seed=0)
    assert mean == 0.25
    assert (low, high) == (pytest.approx(0.2076, abs=0.004), pytest.approx(0.2924, abs=0.004))


def test_rows_of_one_user_bring_no_more_certainty():
    values, users = np.repeat([1.0, 0.0], [10, 30]), [f"u{i}" for i in range(40)]
    once = bootstrap_mean(values, users, seed=0)
    tenfold = bootstrap_mean(np.repeat(values, 10), np.repeat(users, 10).tolist(), seed=0)
    assert tenfold == pytest.approx(once)


def test_bootstrap_repeats_with_its_seed_and_ignores_the_order_of_rows():
    values, users = np.arange(30) % 7 / 7, [f"u{i % 11}" for i in range(30)]
    order = np.random.default_rng(0).permutation(30)
    moved = bootstrap_mean(values[order], [users[i] for i in order], seed=3)
    assert moved == pytest.approx(bootstrap_mean(values, users, seed=3), abs=1e-12)
    assert bootstrap_mean(values, users, seed=4) != bootstrap_mean(values, users, seed=3)


def test_degenerate_tables_have_no_interval():
    assert bootstrap_mean(np.array([]), [], seed=0) == (None, None, None, None)
    assert bootstrap_mean(np.array([1.0, 0.0]), ["a", "a"], seed=0) == (0.5, None, None, None)
    assert paired(np.array([]), np.array([]), []) == (None, None, None, None)
    assert paired(np.ones(2), np.zeros(2), ["a", "a"]) == (1.0, None, None, None)
    assert jackknife(0.5, np.array([0.4])) == Interval(0.5)
    assert jackknife(None, np.array([])) == Interval(None)


def test_paired_differences_by_hand():
    users = [f"u{i}" for i in range(50)]
    a = np.ones(50)
    # Always 1 ahead: every resample gives 1, none is ≤ 0, so p = 2·(1 + 0)/(1 + 20000),
    # which stays below 0.05 beside 49 other tests: Holm's factor for the smallest of 50 is 50.
    assert paired(a, a - 1, users) == (1, 1, 1, pytest.approx(2 / 20001))
    assert holm([2 / 20001] + [1.0] * 49)[0] == pytest.approx(100 / 20001)
    assert paired(a, a, users) == (0, 0, 0, 1)


def test_columns_share_the_draws_of_one_alone():
    generator = np.random.default_rng(0)
    values_NM, users = generator.random((60, 3)), [f"u{i % 17}" for i in range(60)]
    together = bootstrap_means(values_NM, users, seed=5)
    for column, found in zip(values_NM.T, together, strict=True):
        assert found == pytest.approx(bootstrap_mean(column, users, seed=5), abs=1e-12)
    differences = bootstrap_means(values_NM - values_NM[:, [1, 2, 0]], users, seed=0)
    for i, found in enumerate(differences):
        assert found == pytest.approx(paired(values_NM[:, i], values_NM[:, (i + 1) % 3], users), abs=1e-12)


def test_the_bootstrap_is_that_of_plain_resampling():
    # 5 users with 1 to 3 rows: resamples of users one by one, a mean over all their rows each.
    values, users = np.arange(9.0) % 4, ["a", "b", "b", "c", "c", "c", "d", "e", "e"]
    rows = {user: [v for v, u in zip(values, users, strict=True) if u == user] for user in "abcde"}
    generator = np.random.default_rng(1)
    drawn = [np.mean([v for user in generator.choice(list("abcde"), 5) for v in rows[user]]) for _ in range(4000)]
    value, low, high, _ = bootstrap_mean(values, users, seed=0)
    assert value == values.mean()
    assert (low, high) == (
        pytest.approx(np.quantile(drawn, 0.025), abs=0.08),
        pytest.approx(np.quantile(drawn, 0.975), abs=0.08),
    )


def test_pairing_removes_what_the_users_share():
    generator = np.random.default_rng(0)
    easy = generator.normal(size=200) * 10
    a, users = easy + 1 + generator.normal(size=200), [f"u{i}" for i in range(200)]
    value, low, high, p = paired(a, easy, users)
    assert 0.5 < low < value < high < 1.5 and p < 0.01
    alone = bootstrap_mean(a, users, seed=0)
    assert alone.high - alone.low > 5 * (high - low)


def test_rows_that_do_not_count_leave_the_interval_of_the_others():
    values, users = np.repeat([1.0, 0.0], [30, 90]), [f"u{i}" for i in range(120)]
    more = np.stack([np.append(values, [np.nan] * 40), np.full(160, np.nan)], axis=1)
    with warnings.catch_warnings(action="error"):  # scipy's would name a method that is not used
        found, none = bootstrap_means(more, [*users, *users[:40]], 0)
    alone = bootstrap_mean(values, users, 0)
    assert found.value == 0.25 and none == Interval(None)
    assert found[1:3] == pytest.approx(alone[1:3], abs=0.01)


def few(values: np.ndarray, users: list[str]) -> Interval:
    return of_few(bootstrap_mean(values, users, seed=0), values, users)


def test_no_hit_does_not_prove_that_there_are_none():
    assert wilson(0.0, 100) == pytest.approx((0, 0.0370), abs=1e-4)
    assert wilson(0.02, 100) == pytest.approx((0.0055, 0.0700), abs=1e-4)  # two of 100
    for rows in range(1, 400):  # the interval holds the share, whatever the rounding
        assert all(wilson(hits / rows, rows)[0] <= hits / rows <= wilson(hits / rows, rows)[1] for hits in (0, 1, rows))
    users = [f"u{i}" for i in range(100)]
    assert few(np.zeros(100), users)[:3] == (0, *wilson(0.0, 100))
    assert few(np.ones(100), users)[:3] == (1, *wilson(1.0, 100))
    twice = np.repeat(np.eye(1, 100)[0], 2)  # one user of 100, whose two rows both hit
    assert few(twice, np.repeat(users, 2).tolist())[1:3] == pytest.approx(wilson(0.01, 100), rel=0.01)
    many = np.repeat([1.0, 0.0], [20, 80])
    assert few(many, users) == bootstrap_mean(many, users, seed=0)
    gap = np.eye(1, 100)[0] - np.eye(1, 100, 1)[0]
    assert few(gap, users) == bootstrap_mean(gap, users, seed=0)  # a difference is no share


def test_few_hits_are_covered():
    """Two hits expected in 100 rows, which the bootstrap alone covers 86 times in 100 (600 samples)."""
    generator = np.random.default_rng(0)
    users = [f"u{i}" for i in range(100)]
    hits = generator.binomial(100, 0.02, 2000)
    found = {count: few(np.repeat([1.0, 0.0], [count, 100 - count]), users) for count in set(hits.tolist())}
    assert 0.93 < np.mean([found[count].low <= 0.02 <= found[count].high for count in hits.tolist()]) < 0.99


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="3 values, 1 not finite, for 2 users"):
        bootstrap_mean(np.array([1, np.inf, 0]), ["a", "b"], seed=0)
    with pytest.raises(ValueError, match="p-values"):
        holm([0.1, 1.2])


@settings(max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20))
def test_jackknife_of_a_mean_is_the_standard_error(values):
    x = np.array(values)
    without = (x.sum() - x) / (len(x) - 1)
    value, low, high, _ = jackknife(float(x.mean()), without)
    error = x.std(ddof=1) / np.sqrt(len(x))
    assert (value, low, high) == pytest.approx(
        (x.mean(), x.mean() - 1.959964 * error, x.mean() + 1.959964 * error), abs=1e-6
    )


def test_a_jackknife_interval_ends_where_its_metric_does():
    without = np.array([0.5, 0.99, 1.0])
    assert jackknife(0.9, without)[1:3] == pytest.approx((0.253, 1.547), abs=1e-3)
    assert jackknife(0.9, without, METRICS["DivRatio"].ends)[1:3] == pytest.approx((0.253, 1.0), abs=1e-3)
    assert jackknife(-0.9, -without, METRICS["HR"].change_ends)[1:3] == pytest.approx((-1.0, -0.253), abs=1e-3)
    assert METRICS["NDCG"].ends == (0, 1) and METRICS["DGU"].ends == (-np.inf, np.inf)


def test_bootstrap_lowers_the_diversity_ratio_and_jackknife_does_not():
    """Users drawn twice bring no new item, so the bootstrap lies below the observed value."""
    generator = np.random.default_rng(0)
    items_N = generator.zipf(1.5, size=1000) % 5000
    observed = len(set(items_N.tolist())) / 1000

    resampled = [len(set(generator.choice(items_N, 1000).tolist())) / 1000 for _ in range(500)]
    assert np.quantile(resampled, 0.975) < observed

    count = dict(zip(*np.unique(items_N, return_counts=True), strict=True))
    without = np.array([(len(count) - (count[item] == 1)) / 999 for item in items_N])
    _, low, high, _ = jackknife(observed, without)
    assert low is not None and high is not None and low < observed < high


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.04, 0.05]) == pytest.approx([0.08, 0.08])  # 2·0.04, and never below the smaller one's
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert holm([]).shape == (0,)


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_raw_and_bonferroni(p_values):
    p, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= p - 1e-15).all() and (adjusted <= np.minimum(1, len(p) * p) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
