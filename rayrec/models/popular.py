"""``Popular``: the most popular items, the same for everyone but for their own history."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue


def popular_lists(
    examples: pa.Table, catalogue: Catalogue, k: int, leave_out: Sequence[Collection[str]] | None = None
) -> list[list[str]]:
    """Return the ``k`` most popular items of the training split for every row, ties by item index.

    ``examples`` follows schema.EXAMPLES. A list has none of its row's ``leave_out``, by default the row's history; it
    is shorter where the catalogue has too few items left.
    """
    order = np.argsort(-catalogue.popularity, kind="stable")
    without = list(map(set, examples["history"].to_pylist() if leave_out is None else leave_out))
    longest = k + max(map(len, without), default=0)
    titles = [catalogue.titles[item] for item in order[:longest]]
    return [list(islice((title for title in titles if title not in one), k)) for one in without]


def popular_choices(examples: pa.Table, catalogue: Catalogue, k: int) -> list[list[str]]:
    """Return the ``k`` most popular candidates of every row; ties count against the target."""
    lists = []
    for target, titles in zip(examples["target"].to_pylist(), examples["candidates"].to_pylist(), strict=True):
        known = [title for title in titles if title in catalogue.index]
        known.sort(key=lambda title: (-catalogue.popularity[catalogue.index[title]], title == target))
        lists.append(known[:k])
    return lists
