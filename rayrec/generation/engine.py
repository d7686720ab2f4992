"""What writes inside a generator: vLLM, transformers in its place, and the catalogue-constrained beam search.

An engine has ``load(version, folder)``, which takes a finished policy in place, and ``answer(prompts, mode, n, seed)``,
which returns for each prompt (token ids, log-probability) pairs, best first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayrec.config import Config
from rayrec.negatives import NEGATIVES, mixture
from rayrec.prompts import Template
from rayrec.runs.storage import Storage

Mode = Literal["greedy", "sample", "beams", "free_beams", "d3", "score"]


@dataclass(frozen=True)
class Guide:
    """A SASRec that has its word in a beam search (D3)."""

    folder: str
    alpha: float
    """Weight of the language model beside it."""
    histories: tuple[list[int], ...]
    """Item numbers of each prompt's history."""


@dataclass(frozen=True)
class Setup:
    """What every generator is made from."""

    config: Config
    storage: Storage
    base: str
    """Folder or hub id of the base model."""
    template: Template
    titles: tuple[str, ...]
    """The catalogue, for catalogue-constrained beams."""
    gpu: bool
    engine: Literal["vllm", "torch", "chat"]
    threads: int


#: What :class:`BeamEngine` answers.
BY_WEIGHTS = frozenset({"beams", "d3", "score"})


def two_models(config: Config) -> bool:
    """Whether generators of a resolved plan hold a :class:`BeamEngine`'s model besides vLLM's."""
    train, modes = config.train, {*config.evaluate.decode}
    modes |= {NEGATIVES[name].decode or "" for name in mixture.parse(train.negatives)}
    return bool(modes & BY_WEIGHTS) or train.score_negatives or config.data.ask == "liking"
