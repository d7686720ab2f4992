"""Vectors of a catalogue that are computed once and then read from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from rayrec.grounding.embedder import Embedder, Vectors

_FILE = "vectors.safetensors"


class KeptEmbedder:
    """An embedder of dense vectors whose vectors of a catalogue are kept; equal where the ``key`` is.

    ``make_once(key, make)`` returns a folder that ``make(folder)`` has filled (:func:`rayrec.runs.cache.make_once`).
    """

    def __init__(
        self,
        embedder: Embedder,
        key: Mapping[str, Any],
        make_once: Callable[[Mapping[str, Any], Callable[[Path], dict]], Path],
    ) -> None:
        self.embedder, self.key, self._make_once = embedder, dict(key), make_once

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, (n, d); they are not kept."""
        return self.embedder.embed(texts)

    def exact(self, text: str) -> int | None:
        """The embedder's own exact match."""
        return self.embedder.exact(text)

    def embed_catalogue(self, titles: Sequence[str]) -> Vectors:
        """Return one vector per title, (I, d)."""

        def make(folder: Path) -> dict:
            vectors = self.embedder.embed(titles)
            assert isinstance(vectors, torch.Tensor)
            save_file({"vectors": vectors.contiguous()}, folder / _FILE)
            return {}

        return load_file(self._make_once({**self.key, "titles": list(titles)}, make) / _FILE)["vectors"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeptEmbedder) and self.key == other.key

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.key.items())))
