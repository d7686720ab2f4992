"""Lists as they are returned, and how they are made."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pyarrow as pa

#: One list element per row. ``row`` is the place of the history, ``logprob`` log P(title + EOS | prompt) in nats, null
#: in the ``fallback`` for an empty history: the most popular titles. ``inclusion`` and ``threshold`` as in
#: :class:`Entry`.
LISTS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("logprob", pa.float32()),
        pa.field("fallback", pa.bool_(), nullable=False),
        pa.field("inclusion", pa.float64()),
        pa.field("threshold", pa.float64()),
    ]
)
#: How lists are made: the best titles by beams, or titles drawn by their probability (Gumbel top-k).
Explore = Literal["none", "gumbel"]


class Entry(NamedTuple):
    """A title of a list."""

    item: int
    logprob: float | None
    """In nats; None in a fallback. Of a drawn list it is over the titles that the list may hold."""
    inclusion: float | None = None
    """The probability that a draw holds the title, given ``threshold``; None where the list was not drawn."""
    threshold: float | None = None
    """κ of the list, the largest perturbed log-probability that is not in it; None where nothing is left out."""
