"""``Popular``: the most popular items, the same for everyone but for their own history."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue


def popular_lists(examples: pa.Table, catalogue: Catalogue, k: int) -> list[list[str]]:
    """Return the ``k`` most popular items of the training split without the example's history, ties by item index.

    ``examples`` follows schema.EXAMPLES; one list per row, shorter where the catalogue has too few items left.
    """
    order = np.argsort(-catalogue.popularity, kind="stable")
    histories = [set(history) for history in examples["history"].to_pylist()]
    longest = k + max(map(len, histories), default=0)
    titles = [catalogue.titles[item] for item in order[:longest]]
    return [list(islice((title for title in titles if title not in history), k)) for history in histories]
