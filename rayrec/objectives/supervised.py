"""The interface of a supervised loss over the catalogue's tokens, and the plain loss, which reads none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from rayrec.objectives.base import Settings
from rayrec.objectives.pairs import Tensor


class Legal(Protocol):
    """The legal tokens of N answer tokens, E in all (:class:`rayrec.decoding.Legal`)."""

    @property
    def count_N(self) -> Tensor:
        """How many each has; none behind the last choice of its title."""
        ...

    @property
    def owner_E(self) -> Tensor:
        """The answer token that a legal one belongs to."""
        ...

    def logsumexp(self, value_E: Tensor) -> Tensor:
        """Return log Σ exp over the legal tokens of each answer token, [N]; 0 where it has none."""
        ...

    def sum(self, value_E: Tensor) -> Tensor:
        """Return the sum over the legal tokens of each answer token, [N]."""
        ...

    def largest(self, value_E: Tensor, k: int) -> Tensor:
        """Return the k-th largest value of each answer token, the smallest where it has fewer, [N]."""
        ...


@dataclass(frozen=True)
class Choices:
    """N tokens of titles, each chosen among the tokens that continue some title of the catalogue; z are logits."""

    logit_N: Tensor  #: z of the token itself
    logit_E: Tensor  #: z of the legal tokens, in the order of ``legal``
    legal: Legal
    words_N: Tensor  #: log Σ exp z over the vocabulary, for a loss that ``reads_words``, else 0
    share_E: Tensor | None = None  #: share of each legal token in what users chose here, for one that ``reads_shares``

    @property
    def open_N(self) -> Tensor:
        """Whether there was more than one legal token."""
        return self.legal.count_N > 1


@dataclass(frozen=True)
class SftLoss(Settings):
    """A supervised loss: its sum over a global batch is divided by the number of tokens that it counts.

    Subclasses are frozen dataclasses whose fields are settings; the rest of the library reads only the attributes
    below. This one is the plain loss, - log π of every token.
    """

    reads_catalogue: ClassVar[bool] = False  #: is called with :class:`Choices`; else - log π of the title is the loss
    counts_all: ClassVar[bool] = True  #: counts every token of a title; else those with more than one legal token
    reads_words: ClassVar[bool] = False
    reads_shares: ClassVar[bool] = False

    def __call__(self, choices: Choices, temperature: float) -> Tensor:
        """Return ``loss_N``, 0 for a token that is not trained on."""
        raise NotImplementedError

    @property
    def start(self) -> float:
        """The temperature of a phase's first step."""
        return getattr(self, "temperature", None) or 1.0

    @property
    def adapts(self) -> bool:
        """Whether :meth:`following` changes the temperature."""
        return False

    def following(self, temperature: float, gap: float, variance: float, choices: int) -> float:
        """Return the temperature after a step.

        Of the first tokens of the step's global batch, which have ``choices`` legal ones: ``gap`` is z of the chosen
        token less the mean of z of the legal ones, ``variance`` that of z over these (n - 1); both are means over rows.
        """
        return temperature

    def check_catalogue(self, choices: int) -> None:
        """Raise ValueError for a number of first tokens with which the loss is not defined."""
