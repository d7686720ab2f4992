"""Which candidate a text names, and how candidates are ranked."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue
from rayrec.grounding.choice import chosen_lists, named
from rayrec.models.popular import popular_choices

LISTED = ["Alien", "Aliens", "Alien 3", "Up", "Lion King, The (1994)", "Amélie", "M", "What? (1972)"]
LISTED += ["東京", "東京物語", "บางรักซอย", "राम", "सीता"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Alien", ["Alien"]),
        ("Aliens", ["Aliens"]),
        ("Alien 3", ["Alien 3"]),
        ("Alien 3, not Alien", ["Alien", "Alien 3"]),
        ("I recommend: Lion  King,\nThe (1994).", ["Lion King, The (1994)"]),
        ("Ame\u0301lie", ["Amélie"]),  # the same letter, written in two code points
        ("alien", []),
        ("Upside of M.", ["M"]),  # inside a longer word nothing is named
        ("What? (1972)", ["What? (1972)"]),
        ("答えは東京です", ["東京"]),  # no spaces, no borders of words
        ("東京物語", ["東京物語"]),
        ("日本ではAlienです", ["Alien"]),
        ("ขอแนะนำบางรักซอยครับ", ["บางรักซอย"]),
        ("रामायण", []),  # a vowel sign goes on with the word
        ("सीताराम", []),
        ("राम, सीता।", ["राम", "सीता"]),
        ("", []),
        ("none of these", []),
    ],
)
def test_a_text_names_what_stands_alone_in_it(text: str, found: list[str]) -> None:
    assert named(text, LISTED) == found


def table(rows: list[tuple[str, list[str], list[float], str]]) -> pa.Table:
    columns = ["decode", "texts", "logprobs", "target"]
    made = [dict(zip(columns, row, strict=True)) for row in rows]
    full = [{"example_id": f"e{i}", "policy": "p", "titles": [], **row} for i, row in enumerate(made)]
    return pa.Table.from_pylist(full, schema=schema.PREDICTIONS)


def examples(targets: list[str], ratings: list[float | None], candidates: list[list[str]]) -> pa.Table:
    rows = [
        {
            "example_id": f"e{i}",
            "split": "test",
            "user": "u",
            "timestamp": i,
            "history": ["M"],
            "target": target,
            "target_rating": rating,
            "candidates": titles,
        }
        for i, (target, rating, titles) in enumerate(zip(targets, ratings, candidates, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=schema.EXAMPLES)


def test_answers_become_lists_and_ties_count_against_the_target() -> None:
    made = table(
        [
            ("score", ["A", "B", "C"], [-1.0, -1.0, -2.0], "A"),
            ("score", ["A", "B", "C"], [-3.0, -1.0, -2.0], "B"),
            ("greedy", ["It is B"], [-1.0], "B"),
            ("greedy", ["A or B"], [-1.0], "B"),
            ("greedy", ["D"], [-1.0], "B"),
            ("greedy", [], [], "B"),
        ]
    )
    asked = examples([row["target"] for row in made.to_pylist()], [None] * 6, [["A", "B", "C"]] * 6)
    assert chosen_lists(made, asked) == [["B", "A", "C"], ["B", "C", "A"], ["B"], [], [], []]


def test_popular_ranks_candidates_and_ties_count_against_the_target() -> None:
    catalogue = Catalogue.from_items(["A", "B", "C"], [[]] * 3).with_training(np.array([5, 5, 7]), None)
    asked = examples(["A", "C"], [None] * 2, [["A", "B", "C"]] * 2)
    assert popular_choices(asked, catalogue, 2) == [["C", "B"], ["C", "A"]]
