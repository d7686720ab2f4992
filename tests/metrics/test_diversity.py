"""DivRatio and ORRatio: bounds, the order of rows, and the delete-one values of the jackknife."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.metrics import div_ratio_without, evaluate

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


@settings(max_examples=40)
@given(st.lists(_ROW, min_size=1, max_size=10), st.integers(1, 4))
def test_leaving_a_user_out_equals_computing_without_the_rows(tables, catalogue, rows, k):
    predictions, _ = tables(rows)
    users = [row["user"] for row in rows]
    expected = []
    for user in sorted(set(users)):
        left = evaluate(*tables([row for row in rows if row["user"] != user]), catalogue, (k,))[f"DivRatio@{k}"]
        expected.append(np.nan if left is None else left)
    np.testing.assert_allclose(div_ratio_without(predictions, users, k), expected, rtol=1e-12)


def test_leaving_a_user_out_by_hand(tables):
    rows = [{"target": "A", "titles": ["A", "B"]}, {"target": "A", "titles": ["A", "C"]}]
    # all: A B C of 4; without u: A C of 2, without v: A B of 2
    np.testing.assert_allclose(div_ratio_without(tables(rows)[0], ["u", "v"], 2), [1, 1])
    np.testing.assert_allclose(div_ratio_without(tables([*rows, rows[0]])[0], ["u", "v", "u"], 2), [2 / 2, 2 / 4])
