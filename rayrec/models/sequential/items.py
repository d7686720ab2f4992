"""Item vectors of the sequential recommenders: a table of their own, or read from a frozen text embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ItemTable(nn.Module):
    """One learned vector per item, which is both input and output layer; number I, the padding, is a vector of 0."""

    def __init__(self, items: int, hidden: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(items, hidden) * 0.02)

    def forward(self) -> Tensor:
        """Return the vectors as [I, H]."""
        return self.vectors


class TextTable(nn.Module):
    """MoRec (Yuan et al. 2023): an item's vector is a linear map of its title's embedding, which stays frozen."""

    features: Tensor

    def __init__(self, items: int, hidden: int, features: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(items, features))
        self.map = nn.Linear(features, hidden)

    def forward(self) -> Tensor:
        """Return the vectors as [I, H]."""
        return self.map(self.features)


class SequentialModel(nn.Module):
    """A sequential recommender: items in, a state after each place, and scores of all items from it.

    Shapes: B sequences, T places, H hidden size, I items of the catalogue. A sequence is padded on the left with the
    number I, which changes nothing.
    """

    length: int
    """Items that it sees."""

    def __init__(self, items: int, hidden: int, features: int = 0):
        super().__init__()
        self.items = items
        self.table = TextTable(items, hidden, features) if features else ItemTable(items, hidden)

    def states(self, x_BTH: Tensor, real_BT: Tensor) -> Tensor:
        """Return ``hidden_BTH`` from the vectors of the items; ``real_BT`` is False at padding."""
        raise NotImplementedError

    def forward(self, items_BT: Tensor, table_IH: Tensor | None = None) -> Tensor:
        """Return the state after each place as ``hidden_BTH``; an item changes no place before it."""
        vectors_IH: Tensor = self.table() if table_IH is None else table_IH
        real_BT = items_BT < self.items
        x_BTH = vectors_IH[items_BT.clamp(max=self.items - 1)] * real_BT[..., None]
        return self.states(x_BTH, real_BT)


def pad(sequences: Sequence[Sequence[int]], length: int, items: int) -> Tensor:
    """Return the last ``length`` items of each sequence as [B, length], padded on the left with ``items``."""
    return torch.tensor([[items] * (length - len(s[-length:])) + list(s[-length:]) for s in sequences])
