"""MGU and DGU: identities that hold for all lists and histories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.metrics import evaluate

_LIST = st.lists(st.sampled_from("ABCDEF"), unique=True, min_size=1, max_size=4)


@settings(max_examples=40)
@given(st.lists(st.tuples(_LIST, _LIST), min_size=1, max_size=6))
def test_differences_are_bounded_and_sum_to_zero(tables, catalogue, rows):
    found = evaluate(*tables([{"target": "A", "titles": t, "history": h} for t, h in rows]), catalogue, (4,))
    lists, past = found["genres"]["GP@4"], found["genres"]["GH"]
    if lists is None or past is None:
        assert found["MGU@4"] is None and found["DGU@4"] is None
        return
    d = [lists[genre] - past[genre] for genre in ("x", "y")]
    assert sum(d) == pytest.approx(0, abs=1e-12)
    assert found["MGU@4"] == pytest.approx((abs(d[0]) + abs(d[1])) / 2)
    assert 0 <= found["MGU@4"] <= found["DGU@4"] + 1e-12 <= 2 + 1e-12


@settings(max_examples=40)
@given(st.lists(_LIST, min_size=1, max_size=6))
def test_recommending_the_history_is_fair(tables, catalogue, lists):
    found = evaluate(*tables([{"target": "A", "titles": t, "history": t} for t in lists]), catalogue, (4,))
    if found["genres"]["GH"] is not None:
        assert found["MGU@4"] == pytest.approx(0, abs=1e-12)
        assert found["DGU@4"] == pytest.approx(0, abs=1e-12)


def test_sign_and_split_by_hand(tables, catalogue):
    # History A: x = 1. Lists B, C: x = 1/2, y = 1/2 + 1, so shares 1/4 and 3/4: d = (−3/4, +3/4).
    found = evaluate(*tables([{"target": "A", "titles": ["B", "C"], "history": ["A"]}]), catalogue, (2,))
    assert found["genres"]["GP@2"]["y"] - found["genres"]["GH"]["y"] == pytest.approx(3 / 4)
    assert (found["MGU@2"], found["DGU@2"]) == (pytest.approx(3 / 4), pytest.approx(3 / 2))
