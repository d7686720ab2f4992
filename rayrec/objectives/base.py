"""The interface of a preference loss, and how it declares its settings."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, get_args, get_type_hints

import numpy as np

from rayrec.objectives.pairs import Pairs, Tensor

#: The line of ``beta``.
BETA = "Inverse temperature of the implicit reward, > 0"


def setting(default: Any, doc: str, zero: bool = False) -> Any:
    """Declare a field of an objective: default, line of ``--help``, and whether a number may be 0 (never below)."""
    return field(default=default, metadata={"doc": doc, "zero": zero})


@dataclass(frozen=True)
class Settings:
    """Frozen dataclasses whose fields (:func:`setting`) are flags of the command line.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __post_init__(self) -> None:
        for one in fields(self):
            value, zero = getattr(self, one.name), one.metadata.get("zero")
            if isinstance(value, str):
                choices = get_args(get_type_hints(type(self))[one.name])
                if value not in choices:
                    raise ValueError(f"Found {one.name} '{value}'. Choose one of {', '.join(choices)}.")
            elif None not in (value, zero) and not (0 < value < math.inf or (zero and value == 0)):
                raise ValueError(f"Found {one.name} = {value}; it must be a finite number {'>=' if zero else '>'} 0.")


class Shape(Protocol):
    """The form in which a loss takes the answers of a micro-batch: :class:`Pairs`, or :class:`~.group.Group`."""

    groups: ClassVar[bool]
    """Whether it reads groups that may hold the target (``negatives.Sampler.groups``), and no chosen answer."""

    @staticmethod
    def row(row: dict[str, Any]) -> dict[str, Any]:
        """Return a row (schema.TOKENS, the target as its first answer) with the answers that pass the model."""
        ...

    @classmethod
    def of(
        cls,
        logprob_BA: Tensor,
        rows: Sequence[Mapping[str, Any]],
        ref_BA: Tensor | None = None,
        baseline: float | None = None,
        more: Collection[str] = (),
    ) -> Any:
        """Return what the loss is called with, from log π of the answers of these rows and, if it is needed, log π_ref.

        ``baseline`` is z of the global batch, ``more`` are further columns of the rows that the objective reads.
        """
        ...

    def logged(self, scale: float) -> dict[str, Tensor]:
        """Return what a step records beside its loss: values of each example, [B], without gradient."""
        ...

    @staticmethod
    def told(rows: Iterable[tuple[str, Sequence[str]]]) -> dict[str, float]:
        """Return counts of a phase, from the target and the other titles of each of its rows."""
        ...


@dataclass(frozen=True)
class Objective(Settings, ABC):
    """A loss per example; the batch loss is its mean.

    Subclasses are frozen dataclasses whose fields are settings. The rest of the library reads only the attributes
    below, never a name.
    """

    shape: ClassVar[type[Shape]] = Pairs  #: what it is called with
    needs_reference: ClassVar[bool] = True  #: reads log π of the frozen reference, the policy as the phase starts
    on_policy: ClassVar[bool] = False  #: learns from the answers of the very policy that it moves: in one step a phase
    #: Columns of the training rows (``training.pair_columns.COLUMNS``) without which there is no loss.
    reads: ClassVar[frozenset[str]] = frozenset()
    smooths: ClassVar[bool] = False  #: honours ``smoothing_BK``; one that needs it also ``reads`` smoothing
    ordered: ClassVar[bool] = False  #: learns only from pairs whose chosen item scores more
    least_batch: ClassVar[int] = 1  #: smallest global batch

    @abstractmethod
    def __call__(self, pairs: Any, /) -> Tensor:
        """Return ``loss_B`` of a batch of the ``shape``.

        Of :class:`Pairs`: 0 for an example without a rejected answer, unless its docstring has another rule.
        """

    @property
    def scale(self) -> float:
        """Factor of the log-ratios in logged rewards: ``beta``, and 1 for an objective without."""
        return getattr(self, "beta", 1.0)

    def reference_point(self, log_ratios: float, count: float) -> float:
        """Return z of a global batch (``Pairs.baseline_B``), for an objective that reads ``neighbour`` and a reference.

        ``log_ratios``: Σ_i log π_θ/π_ref(y_{i+1}|x_i) over ``count`` examples, each with the chosen answer of the next.
        """
        return log_ratios / count if count else 0.0

    def check_ratings(self, target: str, ratings_N: np.ndarray, tuned_M: np.ndarray) -> None:
        """Raise ValueError for ratings for which the loss is not defined, before a run starts.

        ``target``: ``--target``, the rule by which targets are chosen; ``ratings_N`` and ``tuned_M``: ratings of the
        targets of the training split and of the rows to tune on, NaN if unrated.
        """
