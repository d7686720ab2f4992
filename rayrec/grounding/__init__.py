"""Grounding: the catalogue titles nearest to what a policy wrote (BIGRec section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from rayrec.data.catalogue import Catalogue
from rayrec.data.text import fold
from rayrec.grounding.embedder import EMBEDDERS, Embedder
from rayrec.grounding.title import TitleEmbedder

if TYPE_CHECKING:
    from rayrec.grounding.embedder import Vectors

__all__ = ["EMBEDDERS", "Embedder", "TitleEmbedder", "fold", "forget", "ground"]


def ground(
    texts: Sequence[str], catalogue: Catalogue, embedder: Embedder, k: int, gamma: float = 0.0
) -> list[list[str]]:
    """Return, for each text, the ``k`` catalogue titles nearest to it by L2 distance, best first, ties by item index.

    An exact match of an embedder that knows one comes first. Titles of the user's history are kept, as BIGRec keeps
    them. A text of white space gives an empty list; a catalogue of fewer than ``k`` items gives shorter ones.

    ``gamma`` is the exponent of BIGRec's popularity weight: the distance, scaled to 0..1 over the catalogue for each
    text, is multiplied by (1 + w)^−gamma, w = popularity in the training split scaled to 0..1. 0 ranks by distance.
    Raises ValueError: ``k`` below 1.
    """
    from rayrec.grounding.neighbours import nearest  # imports torch, which --help does not wait for

    if k < 1:
        raise ValueError(f"Found k = {k}, wanted a list of 1 or more titles.")
    unique = list(dict.fromkeys(text for text in texts if text.strip()))
    if not unique or not catalogue.titles:
        return [[] for _ in texts]
    spread_I = catalogue.popularity - catalogue.popularity.min()
    weight_I = None if gamma == 0 else (1 + spread_I / max(1, spread_I.max())) ** -gamma
    exact = [embedder.exact(text) for text in unique]
    items = nearest(embedder.embed(unique), _embedded(embedder, tuple(catalogue.titles)), k, exact, weight_I)
    lists = {text: [catalogue.titles[i] for i in row] for text, row in zip(unique, items, strict=True)}
    return [list(lists.get(text, [])) for text in texts]


@lru_cache(maxsize=2)
def _embedded(embedder: Embedder, titles: tuple[str, ...]) -> Vectors:
    """Embed a catalogue once, by content, since embedders are equal where they embed equally."""
    return getattr(embedder, "embed_catalogue", embedder.embed)(titles)


def forget() -> None:
    """Free the vectors of catalogues that are in memory."""
    _embedded.cache_clear()
