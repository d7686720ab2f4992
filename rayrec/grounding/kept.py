"""Vectors of a catalogue that are made once and then read from a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rayrec.grounding.neighbours import Embedder, Vectors


class KeptEmbedder:
    """An embedder whose vectors of a catalogue lie in ``folder``, in a file named by the contents of both.

    ``key`` is a hash of everything that the embedder is made of; two kept embedders are equal where their keys are.
    """

    def __init__(self, embedder: Embedder, key: str, folder: Path) -> None:
        self.embedder, self.key, self.folder = embedder, key, folder

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, (n, d); nothing is kept."""
        return self.embedder.embed(texts)

    def exact(self, text: str) -> int | None:
        """What the embedder itself says."""
        return self.embedder.exact(text)

    def embed_catalogue(self, titles: Sequence[str]) -> Vectors:
        """Return one vector per title, (I, d), from the file where there is a readable one."""
        name = hashlib.sha256("\x1f".join([self.key, *titles]).encode()).hexdigest()[:32]
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)["vectors"]
        except (FileNotFoundError, SafetensorError, KeyError):
            vectors = self.embedder.embed(titles)
        if isinstance(vectors, torch.Tensor):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            save_file({"vectors": vectors.contiguous()}, partial)
            os.replace(partial, path)
        return vectors

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeptEmbedder) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)
