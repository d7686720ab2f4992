"""random: uniform over the allowed items, and a function of the example alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data import schema
from rayrec.negatives.draw import Draw
from rayrec.negatives.random_items import random_negatives, random_table


@settings(max_examples=50)
@given(st.sets(st.sampled_from("ABCDEFGHxyz")), st.sampled_from("ABCDEFGHx"), st.integers(0, 8), st.text(max_size=3))
def test_negatives_are_distinct_items_outside_history_and_target(catalogue, history, target, k, example_id):
    allowed = set("ABCDEFGH") - history - {target}
    draw = Draw(k, seed=0, iteration=0, policy="p")
    if len(allowed) < k:
        with pytest.raises(ValueError, match=f"found {len(allowed)} items"):
            random_negatives(example_id, history, target, catalogue, draw)
        return
    found = random_negatives(example_id, history, target, catalogue, draw)
    assert len(found) == len(set(found)) == k
    assert set(found) <= allowed


def test_every_allowed_item_is_equally_likely(catalogue):
    draw = Draw(2, seed=0, iteration=0, policy="p")
    n = 3000
    count = Counter(t for i in range(n) for t in random_negatives(f"e{i}", ["A", "C"], "H", catalogue, draw))
    # 2 of 5 allowed items, so each is in 2/5 of the draws; standard deviation √(3000·0.4·0.6) = 27.
    assert set(count) == set("BDEFG")
    assert all(abs(found - n * 2 / 5) < 4 * 27 for found in count.values())


def test_the_draw_of_an_example_does_not_depend_on_the_others(catalogue, examples):
    draw = Draw(2, seed=0, iteration=1, policy="p1")
    whole = random_table(examples, None, catalogue, draw).to_pylist()
    apart = [row for i in (3, 1, 0, 2) for row in random_table(examples.slice(i, 1), None, catalogue, draw).to_pylist()]
    assert sorted(apart, key=lambda row: (row["example_id"], row["k"])) == whole


def test_seed_iteration_and_example_change_the_draw(catalogue):
    def drawn(seed: int, iteration: int, name: str) -> list[list[str]]:
        draw = Draw(3, seed, iteration, "p")
        return [random_negatives(f"{name}{i}", [], "A", catalogue, draw) for i in range(20)]

    assert drawn(0, 0, "e") == drawn(0, 0, "e")
    assert len({str(drawn(*case)) for case in [(0, 0, "e"), (1, 0, "e"), (0, 1, "e"), (0, 0, "f")]}) == 4


def test_rows_follow_the_schema(catalogue, examples):
    table = random_table(examples, None, catalogue, Draw(2, 0, 0, "p0"))
    assert table.schema == schema.NEGATIVES
    assert table["k"].to_pylist() == [0, 1] * 4
    assert set(table["sampler"].to_pylist()) == {"random"} and set(table["raw"].to_pylist()) == {None}
