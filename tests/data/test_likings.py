"""Yes-or-no questions, and the rows that they are asked about."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue
from rayrec.data.likings import NO, YES, liking_rows, one_by_one

CATALOGUE = Catalogue.from_items([f"Film {i}" for i in range(12)], [[]] * 12)
ROW = {"split": "train", "user": "u", "timestamp": 1, "history": ["Film 0", "Film 1"], "history_ratings": None}
ROW |= {"target": "Film 2", "candidates": None}


def table(ratings: list[float | None]) -> pa.Table:
    rows = [ROW | {"example_id": f"e{i}", "target_rating": rating} for i, rating in enumerate(ratings)]
    return pa.Table.from_pylist(rows, schema=schema.EXAMPLES)


def test_what_is_rated_above_three_is_liked() -> None:
    made = liking_rows(table([5.0, 3.5, 3.0, 1.0]), {}, CATALOGUE, 0).to_pylist()
    assert [row["target"] for row in made] == [YES, YES, NO, NO]
    assert all(row["candidates"] == ["Film 2"] and row["history"] == ROW["history"] for row in made)


def test_unrated_rows_have_a_no_for_every_yes() -> None:
    met = {"u": [f"Film {i}" for i in range(3, 9)]}
    rows = table([None] * 30)
    made = liking_rows(rows, met, CATALOGUE, 0).to_pylist()
    assert [row["target"] for row in made] == [YES, NO] * 30
    asked = {row["candidates"][0] for row in made if row["target"] == NO}
    assert asked == {"Film 9", "Film 10", "Film 11"}  # in no history, never met, not the target; and all of them
    assert len({row["example_id"] for row in made}) == 60
    met["u"] += [f"Film {i}" for i in range(12, 24)]  # outside the catalogue
    assert liking_rows(rows, met, CATALOGUE, 0).to_pylist() == made
    assert made == liking_rows(rows, met, CATALOGUE, 0).to_pylist() != liking_rows(rows, met, CATALOGUE, 1).to_pylist()
    with pytest.raises(ValueError, match="met the whole catalogue"):
        liking_rows(rows, {"u": CATALOGUE.titles}, CATALOGUE, 0)


def test_candidates_are_asked_about_one_by_one() -> None:
    rows = pa.Table.from_pylist(
        [
            row | {"candidates": titles}
            for row, titles in zip(table([1.0, 2.0]).to_pylist(), (["a", "b"], ["c"]), strict=True)
        ],
        schema=schema.EXAMPLES,
    )
    made = one_by_one(rows).to_pylist()
    assert [(row["example_id"], row["candidates"]) for row in made] == [("e0", ["a"]), ("e0", ["b"]), ("e1", ["c"])]
    assert one_by_one(rows).schema.equals(rows.schema)
