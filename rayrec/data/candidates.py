"""Candidate sets: the target among items that the user never met (METHODS section 6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayrec.seeds import seed_of

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue

#: Titles of a candidate set.
CANDIDATES = 20


def touched(train: pa.Table) -> dict[str, frozenset[str]]:
    """Titles that each user met, in histories and targets of the rows of ``train`` (schema.EXAMPLES)."""
    met: dict[str, set[str]] = defaultdict(set)
    for row in train.select(["user", "history", "target"]).to_pylist():
        met[row["user"]].update(row["history"], (row["target"],))
    return {user: frozenset(titles) for user, titles in met.items()}


def candidates(
    example: Mapping[str, Any], met: Collection[str], catalogue: Catalogue, seed: int, count: int = CANDIDATES
) -> list[str]:
    """Return ``count`` distinct titles in random order: the target, and items neither ``met`` nor in the history.

    Draw and order depend on (seed, user, time of the example) and never on the target, so a place in the list tells
    nothing about a title. (S-DPO's published LastFM lists place each target at a constant position.)

    Raises:
        ValueError: fewer than ``count - 1`` items are left.
    """
    target = example["target"]
    out = {catalogue.index[t] for t in (*met, *example["history"], target) if t in catalogue.index}
    free = np.setdiff1d(np.arange(len(catalogue)), sorted(out))
    if len(free) < count - 1:
        raise ValueError(
            f"Example {example['example_id']}: found {len(free)} items that the user never met, wanted {count - 1}. "
            "Take a larger catalogue."
        )
    # The target only decides what is left out: the generator knows the user and the time.
    draw = np.random.default_rng(seed_of(seed, "candidates", example["user"], example["timestamp"]))
    place = int(draw.integers(count))
    titles = [catalogue.titles[i] for i in draw.choice(free, count - 1, replace=False)]
    return [*titles[:place], target, *titles[place:]]
