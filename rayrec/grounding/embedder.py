"""The protocol of embedders, and the table of those that a run may name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from rayrec.grounding.title import TitleEmbedder

if TYPE_CHECKING:
    from scipy import sparse
    from torch import Tensor

    #: Dense float32 vectors (n, d), or sparse rows of unit length or zero.
    Vectors: TypeAlias = Tensor | sparse.csr_matrix


class Embedder(Protocol):
    """Turns texts into vectors. Embedders compare equal (and hash equally) only where they give equal vectors."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, (n, d)."""
        ...

    def exact(self, text: str) -> int | None:
        """Return the item that ``text`` names letter by letter, or None; embedders that do not look return None."""
        ...

    def __hash__(self) -> int: ...


def _sentence(path: str) -> Embedder:
    from rayrec.grounding.sentence import SentenceEmbedder  # imports torch, which --help does not wait for

    return SentenceEmbedder(path)


def _lm(path: str) -> Embedder:
    from rayrec.grounding.lm import LanguageModelEmbedder

    return LanguageModelEmbedder(path)


#: Embedders by name; ``title`` is made of the catalogue's titles, the others of a folder.
EMBEDDERS: dict[str, Callable[..., Embedder]] = {"title": TitleEmbedder, "sentence": _sentence, "lm": _lm}
