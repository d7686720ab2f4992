"""Samplers of rejected answers, from the examples and from what the policy wrote or scored.

A new one is a file here, a row in :data:`NEGATIVES` and a test. A script may add a row before it imports
:mod:`rayrec.config`, whose ``--help`` lists them.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import pyarrow as pa

from rayrec.data.candidates import CANDIDATES
from rayrec.data.catalogue import Catalogue
from rayrec.negatives.candidate_items import candidates_of, candidates_table, self_hard_table
from rayrec.negatives.draw import Draw
from rayrec.negatives.group import group_table
from rayrec.negatives.popular_items import popular_table
from rayrec.negatives.random_items import random_table
from rayrec.negatives.self_play import finish_self_play
from rayrec.negatives.semantic import semantic_table

Need = Literal["touched", "later", "embedder", "candidates"]
#: What samplers of candidates need.
_LISTS: frozenset[Need] = frozenset({"touched", "later", "candidates"})


class Sampler(NamedTuple):
    """How rejected answers are made, and what that needs."""

    #: (examples, each once, outputs, catalogue, draw): rows of schema.NEGATIVES, the same however it is divided.
    finish: Callable[[pa.Table, pa.Table | None, Catalogue, Draw], pa.Table]
    doc: str  #: its line of ``--help``
    #: How the policy answers, if it does.
    decode: Literal["greedy", "sample", "beams", "free_beams", "score", "gumbel"] | None = None
    answers: Callable[[int], int] = lambda k: 1  #: answers to a prompt, or for ``score`` titles, from K
    #: For ``score``: the titles of each example whose log-probabilities ``outputs`` then holds, in the same order.
    choices: Callable[[pa.Table, Catalogue, Draw], list[list[str]]] | None = None
    #: ``touched``, ``later``, ``embedder``: fields of the draw that are filled (``embedder`` is ``draw.similar``);
    #: ``candidates``: the catalogue has a whole candidate set for every user, and K wrong titles are in it.
    needs: frozenset[Need] = frozenset()
    #: Whether the titles are a group that may hold the target (:class:`rayrec.objectives.Group`), and not rejected.
    groups: bool = False


NEGATIVES: dict[str, Sampler] = {
    "self_play": Sampler(finish_self_play, "the policy's own answer (SPRec)", "greedy"),
    "self_play_sample": Sampler(
        partial(finish_self_play, sampler="self_play_sample"), "K samples of the policy", "sample", lambda k: k
    ),
    "self_play_beam": Sampler(
        partial(finish_self_play, sampler="self_play_beam"), "the K best beams", "free_beams", lambda k: 2 * k
    ),
    # One more, for the target that may be among them.
    "self_play_gumbel": Sampler(
        partial(finish_self_play, sampler="self_play_gumbel"),
        "K distinct titles drawn by it",
        "gumbel",
        lambda k: k + 1,
    ),
    "group_beams": Sampler(
        group_table,
        "K beams over the catalogue, the target among them (ReRe)",
        "beams",
        lambda k: k,
        groups=True,
    ),
    "random": Sampler(random_table, "uniform over items outside history and target"),
    "popular": Sampler(popular_table, "in proportion to popularity (RosePO)"),
    "candidates": Sampler(candidates_table, "wrong titles of the candidate set (S-DPO, RecPO)", needs=_LISTS),
    "semantic": Sampler(semantic_table, "items most like the history (RosePO)", needs=frozenset({"embedder"})),
    "self_hard": Sampler(
        self_hard_table, "likeliest wrong candidates (RosePO)", "score", lambda k: CANDIDATES, candidates_of, _LISTS
    ),
}
#: The sampler of each ``--protocol`` where none is named.
DEFAULTS = {"open": "self_play", "candidates": "candidates"}
