"""Samplers of rejected answers (METHODS section 3), from the examples and from what the policy wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa

from rayrec.negatives.draw import Draw
from rayrec.negatives.random_items import random_negatives, random_table
from rayrec.negatives.self_play import finish_self_play
from rayrec.negatives.statistics import negative_statistics

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue

__all__ = [
    "NEGATIVES",
    "Draw",
    "Sampler",
    "finish_self_play",
    "negative_statistics",
    "random_negatives",
    "random_table",
]


class Sampler(NamedTuple):
    """``decode`` is how the policy answers (None: not asked); ``finish`` makes the rows of schema.NEGATIVES."""

    decode: Literal["greedy", "sample", "beams"] | None
    finish: Callable[[pa.Table, pa.Table | None, Catalogue, Draw], pa.Table]


NEGATIVES: dict[str, Sampler] = {
    "random": Sampler(None, random_table),
    "self_play": Sampler("greedy", finish_self_play),
}
