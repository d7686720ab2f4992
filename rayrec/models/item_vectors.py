"""Item vectors in prompts (LLaRA, Liao et al. 2024): the vectors of a sequential recommender as tokens.

Behind its title an item has a token of its own. Item i of I is token V + i of a model with V words, and its input
embedding is MLP(e_i), with the frozen vector e_i of a SASRec. Token V + I is a learned vector: it stands for titles
outside the catalogue, and in text-only steps for all items. Since they are tokens, packing, generation and scoring see
nothing new; no item token is ever an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rayrec.models.logprobs import plain
from rayrec.seeds import seed_of

#: The file of a policy folder that holds them; its names are those of :class:`ItemVectors`.
FILE = "item_vectors.safetensors"


class ItemVectors(nn.Module):
    """Input embeddings of the item tokens. Shapes: I items, E size of their vectors, H hidden size of the model."""

    vectors: Tensor

    def __init__(self, vectors_IE: Tensor, vocabulary: int, hidden: int):
        super().__init__()
        self.register_buffer("vectors", vectors_IE)
        self.map = nn.Sequential(nn.Linear(vectors_IE.shape[1], hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.none = nn.Parameter(torch.zeros(hidden))
        self.vocabulary = vocabulary

    def forward(self, item_N: Tensor) -> Tensor:
        """Return the embeddings of items as [N, H]; number I is the learned vector of no item."""
        known_N1 = (item_N < len(self.vectors))[:, None]
        vectors_NE = self.vectors[item_N.clamp(max=len(self.vectors) - 1)].to(self.none.dtype)
        # Both sides are computed, so that every parameter has a gradient in every step, as ZeRO-3 wants it.
        return torch.where(known_N1, self.map(vectors_NE), self.none)

    def hide(self, ids: Sequence[int]) -> list[int]:
        """Return a prompt as a text-only step reads it: with the learned vector in the place of every item."""
        return [min(token, self.vocabulary) + (token >= self.vocabulary) * len(self.vectors) for token in ids]


def attach(model: Any, vectors_IE: Tensor, seed: int = 0) -> ItemVectors:
    """Give a causal LM, plain or with adapters, item tokens with a seeded MLP; earlier ones are replaced."""
    lm = plain(model)
    words = lm.get_input_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "item_vectors"))
        lm.item_vectors = ItemVectors(vectors_IE.detach().float(), words.num_embeddings, words.embedding_dim)
    lm.item_vectors.to(words.weight.device)
    words.forward = partial(_embed, words, lm.item_vectors)
    return lm.item_vectors


def attached(model: Any) -> ItemVectors | None:
    """Return the item tokens that :func:`attach` gave the model, or None."""
    return getattr(plain(model), "item_vectors", None)


def _embed(words: nn.Embedding, items: ItemVectors, ids: Tensor) -> Tensor:
    """The input embeddings of words and items."""
    is_item = ids >= items.vocabulary
    x = F.embedding(ids.masked_fill(is_item, 0), words.weight)
    return x.masked_scatter(is_item[..., None], items(ids[is_item] - items.vocabulary).to(x.dtype))


def owns(name: str) -> bool:
    """Whether a parameter of this name is one of theirs."""
    return "item_vectors." in name


def maps(name: str) -> bool:
    """Whether a parameter of this name belongs to the network that maps the items' vectors."""
    return "item_vectors.map." in name


def write(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    """Write :data:`FILE`: the items' vectors, and those parameters of ``state`` that :func:`owns`."""
    tensors = {name.rpartition("item_vectors.")[2]: tensor for name, tensor in state.items() if owns(name)}
    found = attached(model)
    assert found is not None, "attach comes first"
    tensors["vectors"] = found.vectors
    plain = {name: tensors[name].detach().float().cpu().contiguous() for name in sorted(tensors)}
    save_file(plain, folder / FILE, metadata={"format": "pt"})


def load(model: Any, folder: str | Path) -> None:
    """Load a policy folder's :data:`FILE`, if there is one; in place where the model has item tokens."""
    path = Path(folder) / FILE
    if not path.exists():
        return
    tensors, found = load_file(path), attached(model)
    if found is None or found.vectors.shape != tensors["vectors"].shape:
        found = attach(model, tensors["vectors"])
    found.load_state_dict(tensors)
