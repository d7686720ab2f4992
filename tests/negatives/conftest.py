"""Examples over a small catalogue."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue
from rayrec.negatives.statistics import Statistics


def statistics(slices: Iterable[tuple[pa.Table, pa.Table, pa.Table | None]], catalogue: Catalogue, k: int) -> dict:
    """What was counted over slices."""
    found = Statistics(catalogue, k)
    for one in slices:
        found.add(*one)
    return found.result()


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """Items A to H."""
    return Catalogue.from_items("ABCDEFGH", [[]] * 8).with_training(np.zeros(8), [])


@pytest.fixture(scope="session")
def examples() -> pa.Table:
    """Four examples of target D, E, F and G, all with the history A, B, C."""
    rows = [
        {"example_id": f"e{i}", "split": "train", "user": f"u{i}", "timestamp": i, "history": list("ABC"), "target": t}
        for i, t in enumerate("DEFG")
    ]
    return pa.Table.from_pylist(rows, schema=schema.EXAMPLES)


@pytest.fixture(scope="session")
def outputs():
    """Build the table of what a policy wrote: one list of texts per example."""

    def build(*texts: list[str]) -> pa.Table:
        logprobs = [[-float(place) for place, _ in enumerate(row)] for row in texts]
        return pa.table({"example_id": [f"e{i}" for i in range(len(texts))], "texts": texts, "logprobs": logprobs})

    return build
