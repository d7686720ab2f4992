"""Samplers of rejected answers, from the examples and from what the policy wrote or scored."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import pyarrow as pa

from rayrec.data.candidates import CANDIDATES
from rayrec.negatives.candidate_items import candidates_of, candidates_table, self_hard_table
from rayrec.negatives.draw import Draw
from rayrec.negatives.popular_items import popular_table
from rayrec.negatives.random_items import random_negatives, random_table
from rayrec.negatives.scored import unscored, with_scores
from rayrec.negatives.self_play import finish_self_play
from rayrec.negatives.semantic import semantic_table
from rayrec.negatives.statistics import Statistics

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue

__all__ = [
    "NEGATIVES",
    "Draw",
    "Sampler",
    "Statistics",
    "finish_self_play",
    "random_negatives",
    "random_table",
    "unscored",
    "with_scores",
]


def _one(k: int) -> int:
    return 1


class Sampler(NamedTuple):
    """How rejected answers are made, and what the policy is asked for that."""

    finish: Callable[[pa.Table, pa.Table | None, Catalogue, Draw], pa.Table]
    """(examples, each once, outputs, catalogue, draw): rows of schema.NEGATIVES, the same however it is divided."""
    decode: Literal["greedy", "sample", "free_beams", "score"] | None = None
    """How the policy answers; None: it is not asked."""
    answers: Callable[[int], int] = _one
    """Answers to a prompt, from K; for ``score`` the titles whose log-probabilities are asked for."""
    choices: Callable[[pa.Table, Catalogue, Draw], list[list[str]]] | None = None
    """For ``score``: the titles of each example whose log-probabilities ``outputs`` then holds, in the same order."""
    needs_embedder: bool = False
    """Reads ``draw.similar``."""


NEGATIVES: dict[str, Sampler] = {
    "self_play": Sampler(finish_self_play, "greedy"),
    "self_play_sample": Sampler(partial(finish_self_play, sampler="self_play_sample"), "sample", lambda k: k),
    "self_play_beam": Sampler(partial(finish_self_play, sampler="self_play_beam"), "free_beams", lambda k: 2 * k),
    "random": Sampler(random_table),
    "popular": Sampler(popular_table),
    "candidates": Sampler(candidates_table),
    "semantic": Sampler(semantic_table, needs_embedder=True),
    "self_hard": Sampler(self_hard_table, "score", lambda k: CANDIDATES, candidates_of),
}
