"""From examples to sequences of item numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.catalogue import Catalogue
from rayrec.data.mapped import slices, take


def item_numbers(histories: Iterable[Iterable[str]], catalogue: Catalogue) -> list[list[int]]:
    """Numbers of the titles of each history; titles outside the catalogue are left out."""
    return [[catalogue.index[title] for title in one if title in catalogue.index] for one in histories]


def sequences_of(train: pa.Table, catalogue: Catalogue) -> list[list[int]]:
    """Rebuild each user's sequence from the windows of the training split (schema.EXAMPLES), in order.

    A window that does not follow the one before it begins a new sequence, so that nothing is joined that was not
    consecutive. Titles outside the catalogue are left out.
    """
    whole: list[list[int]] = []
    user, expected, longest = None, None, longest_history(train)
    for some in slices(take(train.select(["user", "history", "target"]), _by_user(train))):
        for row in some.to_pylist():
            if row["user"] != user or row["history"] != expected:
                whole += item_numbers([row["history"]], catalogue)
            whole[-1] += item_numbers([[row["target"]]], catalogue)[0]
            user, expected = row["user"], [*row["history"], row["target"]][-longest:]
    return whole


def longest_history(rows: pa.Table) -> int:
    """Titles of the longest history."""
    return int(pc.call_function("list_value_length", [rows["history"]]).to_numpy().max(initial=0))


def _by_user(rows: pa.Table) -> np.ndarray:
    """Row numbers user after user, as they come in time, and each one's in time; the order of the rows breaks ties."""
    users = rows["user"].dictionary_encode().unify_dictionaries().combine_chunks().indices.to_numpy()
    by_time = np.argsort(rows["timestamp"].to_numpy(), kind="stable")
    _, first = np.unique(users[by_time], return_index=True)
    return by_time[np.argsort(first[users[by_time]], kind="stable")]


def known_rows(rows: pa.Table, catalogue: Catalogue) -> tuple[list[list[int]], list[int]]:
    """Histories and targets of the rows whose target is in the catalogue."""
    histories, targets = [], []
    for some in slices(rows.select(["history", "target"])):
        kept = [row for row in some.to_pylist() if row["target"] in catalogue.index]
        histories += item_numbers([row["history"] for row in kept], catalogue)
        targets += [catalogue.index[row["target"]] for row in kept]
    return histories, targets
