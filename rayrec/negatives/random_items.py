"""``random``: uniform over the items that are neither in the user's history nor the target."""

from collections.abc import Collection, Iterable

import numpy as np
import pyarrow as pa

from rayrec.data.catalogue import Catalogue
from rayrec.negatives.draw import Draw, contexts, table, too_few


def random_table(examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw) -> pa.Table:
    """Return ``draw.k`` rows of schema.NEGATIVES for each example; ``outputs`` is not read."""
    rows = []
    for example in contexts(examples):
        titles = random_negatives(**example, catalogue=catalogue, draw=draw)
        rows += draw.drawn(example["example_id"], "random", titles)
    return table(rows)


def random_negatives(
    example_id: str,
    history: Iterable[str],
    target: str,
    catalogue: Catalogue,
    draw: Draw,
    k: int | None = None,
    without: Collection[str] = (),
) -> list[str]:
    """Draw ``k`` (default ``draw.k``) distinct titles, uniform over items outside ``history``, ``target``, ``without``.

    The draw depends on (seed, iteration, example_id) and these items only. ValueError: fewer than ``k`` are left.
    """
    k = draw.k if k is None else k
    taken = sorted({catalogue.index[title] for title in (*history, target, *without) if title in catalogue.index})
    free = len(catalogue.titles) - len(taken)
    if free < k:
        raise too_few(example_id, free, k)
    items = draw.generator(example_id).choice(free, size=k, replace=False)
    for item in taken:  # ascending: place p among the free items becomes the p-th item that is not taken
        items = items + (items >= item)
    return [catalogue.titles[item] for item in np.atleast_1d(items).tolist()]
