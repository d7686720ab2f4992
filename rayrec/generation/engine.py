"""The protocol of generation engines, and the values that they are made from and asked with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from rayrec.config import Config
    from rayrec.models.proof import Probe
    from rayrec.prompts import Template
    from rayrec.runs.storage import Storage

Mode = Literal["greedy", "sample", "beams", "free_beams", "d3", "score", "gumbel"]
#: Token ids of one answer, EOS included where it was written, and their log-probability in nats; of a title whose beams
#: or scores were asked for also ``Answer.kept``.
Scored = tuple[list[int], float] | tuple[list[int], float, float | None]


@dataclass(frozen=True)
class Guide:
    """A SASRec whose scores enter a beam search (D3)."""

    folder: str
    alpha: float
    """Weight of the language model; SASRec has the rest."""
    histories: list[list[int]]
    """Item numbers of each prompt's history."""


@dataclass(frozen=True)
class Part:
    """Some prompts of one phase, answered whole by one engine in one call."""

    phase: str
    number: int
    version: str
    """Name of the policy, such as ``01/prefer``."""
    folder: str
    """Its policy folder."""
    prompts: list[list[int]]
    mode: Mode
    n: int = 1
    """Samples, distinct ones in mode ``gumbel``, or width of the beam."""
    seed: int = 0
    """Decides what is sampled."""
    choices: list[list[list[int]]] | None = None
    """Answers to score for each prompt, in mode ``score``."""
    guide: Guide | None = None
    """In mode ``d3``."""
    threads: int = 0
    """CPU threads, a function of the phase; 0: those of every part, ``Setup.threads``."""
    stated: dict[str, Any] | None = None
    """The trainer's statement about the policy (:mod:`rayrec.models.proof`); None where this run did not train it."""
    targets: list[list[int]] | None = None
    """In modes ``beams`` and ``d3``: a title for each prompt, whose score follows those of the beams, NaN where it is
    not in the catalogue."""


class Answer(NamedTuple):
    """One answer: its tokens, the text that they spell up to EOS, and their log-probability in nats."""

    ids: list[int]
    text: str
    logprob: float
    kept: float | None = None
    """Of a title in modes ``beams`` and ``score``: its log-probability over the vocabulary less that over the
    catalogue, at most 0 (:class:`rayrec.decoding.Found`)."""


@dataclass(frozen=True)
class Setup:
    """Settings and inputs from which every generator is made."""

    config: Config
    storage: Storage
    base: str
    """Folder or hub id of the base model."""
    template: Template
    titles: tuple[str, ...]
    """The catalogue, for catalogue-constrained beams."""
    gpu: bool
    engine: type[Engine]
    threads: int
    modes: frozenset[str] = frozenset()
    """All modes of the run (:func:`modes_of`); an actor does not know the samplers that a user's script adds."""
    probe: Probe | None = None
    """The answer that every engine scores after a load; without one nothing is compared."""


class Engine(Protocol):
    """Generates answers inside a generator's actor, on whatever node that is; a subclass is a row of ENGINES.

    Modes that it lacks are answered by :class:`~rayrec.generation.constrained.Constrained` from the policy's weights.
    """

    modes: ClassVar[frozenset[Mode]]
    """The modes that it answers."""
    died: tuple[type[Exception], ...] = ()
    """Errors after which the engine is useless: its actor is replaced and the part made again."""
    reads_item_vectors: ClassVar[bool] = False
    """Whether it runs the models of ``--item-vectors``."""
    spans_gpus: ClassVar[bool] = False
    """Whether one engine may span the GPUs of ``--tensor-parallel``."""
    together: ClassVar[frozenset[Mode]] = frozenset()
    """The modes in which it answers several parts of one policy at once, each in a thread of its own."""
    opens_plainly: ClassVar[bool] = False
    """Whether it opens policies by transformers alone, with which an untrained policy's weights are compared."""
    needs_endpoint: ClassVar[bool] = False
    """Whether it asks the model of ``--endpoint`` and not the run's policies; `auto` never takes it."""

    def __init__(self, setup: Setup) -> None: ...

    def load(self, version: str, folder: str) -> None:
        """Take a finished policy in place; version ``BASE`` is the model before training."""
        ...

    def answer(self, part: Part) -> list[list[Scored]]:
        """Return answers to each prompt, best first; the same for the same part whatever was answered before."""
        ...

    def state(self, probe: Probe) -> dict[str, Any] | None:
        """State what it holds after a load: ``probe``, ``logprob``, and digests (:mod:`rayrec.models.proof`).

        None for an engine that cannot; its hand-offs are not proven.
        """
        return None

    def sleep(self) -> None:
        """Free the GPU's memory (``--placement shared``)."""

    def wake(self) -> None:
        """Take the GPU's memory back."""

    @classmethod
    def in_flight(cls, gpu: bool) -> int:
        """Return how many parts a generator is given at once; above 1 its methods are called from several threads."""
        return 1

    @classmethod
    def missing(cls) -> str:
        """Return why it cannot be used on this machine, with the remedy; empty if it can."""
        return ""

    @classmethod
    def check(cls, config: Config, gpu: bool) -> None:
        """Raise ValueError for settings that it cannot serve; called in the driver before an actor starts."""

    @classmethod
    def check_model(cls, config: Config, gpu: bool, base: str) -> None:
        """Raise ValueError for a base model, a folder or hub id, that it cannot run."""


class EngineDied(Exception):
    """An engine is dead although its actor lives."""


def set_threads(threads: int) -> None:
    """Set the CPU threads of this process's products; vLLM's start replaces ``torch.set_num_threads`` by a warning."""
    from torch import _C

    _C.set_num_threads(threads)


def modes_of(config: Config) -> set[str]:
    """Return the modes that the phases of a resolved plan ask for."""
    from rayrec.negatives import NEGATIVES, mixture

    modes = {*config.evaluate.decode, *(NEGATIVES[name].decode for name in mixture.parse(config.train.negatives))}
    if config.train.score_negatives or config.data.ask == "liking":
        modes.add("score")
    return {mode for mode in modes if mode}


def weights_folder(folder: str) -> Path:
    """Return the folder with all weights of a policy: its merged ones where it has them, a hub id's local copy."""
    from rayrec.models.folder import local_folder

    merged = Path(folder) / "merged"
    return merged if merged.exists() else local_folder(folder)


def move(model: Any, device: str) -> None:
    """Move a model's weights to a device; a GPU that they leave has their memory free for other processes."""
    import torch

    model.to(device)
    torch.cuda.empty_cache()
