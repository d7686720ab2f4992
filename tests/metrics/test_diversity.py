"""DivRatio and ORRatio: bounds, the order of rows, and the delete-one values of the jackknife."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.metrics import METRICS, answers, evaluate

_ROW = st.fixed_dictionaries(
    {
        "target": st.just("A"),
        "titles": st.lists(st.sampled_from("ABCDEF"), unique=True, max_size=4),
        "user": st.sampled_from(["u", "v", "w"]),
    }
)


@settings(max_examples=40)
@given(st.lists(_ROW, min_size=1, max_size=10), st.integers(1, 4))
def test_ratios_lie_between_their_bounds(tables, catalogue, rows, k):
    found = evaluate(*tables(rows), catalogue, (k,))
    items = sum(len(row["titles"][:k]) for row in rows)
    if items == 0:
        assert found[f"DivRatio@{k}"] is None and found[f"ORRatio@{k}"] is None
        return
    distinct = found[f"DivRatio@{k}"] * items
    assert distinct == pytest.approx(len({title for row in rows for title in row["titles"][:k]}))
    # Three items hold at least their even share, and at least one occurrence each.
    assert min(1, 3 / distinct) - 1e-12 <= found[f"ORRatio@{k}"] <= 1
    assert found[f"filled@{k}"] == pytest.approx(items / (k * len(rows)))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.without])
@settings(max_examples=40)
@given(st.lists(_ROW, min_size=1, max_size=10), st.integers(1, 4))
def test_leaving_a_user_out_equals_computing_without_the_rows(tables, catalogue, name, rows, k):
    predictions, _ = tables(rows)
    users = [row["user"] for row in rows]
    expected = []
    for user in sorted(set(users)):
        left = evaluate(*tables([row for row in rows if row["user"] != user]), catalogue, (k,))[f"{name}@{k}"]
        expected.append(np.nan if left is None else left)
    without = METRICS[name].without
    assert without
    np.testing.assert_allclose(without(answers(predictions), users, k), expected, rtol=1e-12)


def test_leaving_a_user_out_by_hand(tables):
    div_ratio, or_ratio = METRICS["DivRatio"].without, METRICS["ORRatio"].without
    assert div_ratio and or_ratio
    rows = [{"target": "A", "titles": ["A", "B"]}, {"target": "A", "titles": ["A", "C"]}]
    # all: A B C of 4; without u: A C of 2, without v: A B of 2
    np.testing.assert_allclose(div_ratio(answers(tables(rows)[0]), ["u", "v"], 2), [1, 1])
    np.testing.assert_allclose(div_ratio(answers(tables([*rows, rows[0]])[0]), ["u", "v", "u"], 2), [2 / 2, 2 / 4])
    # a a a, b b, c c, d: 7 of 8. Without u: a b c d of 1, 1, 1, 1 leave 3 of 4; without v: a a, b, c leave 4 of 4.
    lists, users = [["a", "b"], ["a", "b"], ["a", "c"], ["c", "d"]], ["u", "v", "u", "v"]
    found = answers(tables([{"target": "t", "titles": titles} for titles in lists])[0])
    assert or_ratio(found, users, 2) == pytest.approx([3 / 4, 4 / 4])
    assert or_ratio(found, users, 1) == pytest.approx([1, 1])
    assert np.isnan(or_ratio(answers(tables([{"target": "t", "titles": ["a"]}])[0]), ["u"], 2)).all()
