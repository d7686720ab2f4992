"""A small table whose metrics are computed by hand in test_evaluate.py, and a builder of others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue


def _tables(rows: list[dict]) -> tuple[pa.Table, pa.Table]:
    """(predictions, examples) of rows with ``target``, ``titles`` and, where it matters, other columns."""
    predictions = [
        {"example_id": f"e{i}", "policy": "p", "decode": "greedy", "target": row["target"], "texts": [], "logprobs": []}
        | {"titles": row["titles"]}
        for i, row in enumerate(rows)
    ]
    examples = [
        {"example_id": f"e{i}", "split": row.get("split", "test"), "user": row.get("user", f"u{i}"), "timestamp": i}
        | {"history": row.get("history", []), "target": row["target"], "target_rating": row.get("target_rating")}
        for i, row in enumerate(rows)
    ]
    return (
        pa.Table.from_pylist(predictions, schema=schema.PREDICTIONS),
        pa.Table.from_pylist(examples, schema=schema.EXAMPLES),
    )


@pytest.fixture(scope="session")
def tables():
    return _tables


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """Items A to F over the selected genres x and y; D has no genre, E one that is not selected."""
    genres = {"A": ["x"], "B": ["x", "y"], "C": ["y"], "D": [], "E": ["z"], "F": ["x", "z"]}
    return Catalogue.from_items(genres, genres.values()).with_training(np.arange(6), ["x", "y"])


@pytest.fixture(scope="session")
def four_rows() -> tuple[pa.Table, pa.Table]:
    return _tables(
        [
            {"target": "A", "titles": ["A", "B"], "history": ["A", "E"]},
            {"target": "C", "titles": ["B", "C"], "history": ["C", "not in the catalogue"]},
            {"target": "not in the catalogue", "titles": ["A", "D"], "history": ["B"]},
            {"target": "B", "titles": [], "history": ["A"]},
        ]
    )
