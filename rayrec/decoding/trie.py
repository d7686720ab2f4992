"""The catalogue as a prefix tree of token ids, in flat arrays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Trie:
    """A prefix tree that ends as soon as a title is unique; node 0 is the root, nodes are numbered breadth first.

    The edges of node v are ``pointers[v]`` to ``pointers[v + 1] - 1``, in the order of their tokens. Edge e reads
    ``tokens[e]`` and leads to the node ``next[e]`` or, where only item i is left, to ``~i`` (negative). The whole
    title is ``answers[offsets[i]:offsets[i + 1]]``. All arrays are int64.
    """

    pointers: Tensor
    tokens: Tensor
    next: Tensor
    answers: Tensor
    offsets: Tensor

    @classmethod
    def build(cls, answers: list[list[int]]) -> Trie:
        """Build the trie of the titles' token ids, EOS included; a title's index in the list is its item's number.

        Raises:
            ValueError: no answers, an empty one, or one that equals or begins another.
        """
        if not answers or not all(answers):
            raise ValueError("Found no titles or an empty one, wanted at least one title, each with EOS at its end.")
        lengths = np.fromiter(map(len, answers), np.int64, len(answers))
        offsets = np.concatenate([[0], lengths.cumsum()])
        flat = np.fromiter(chain.from_iterable(answers), np.int64, offsets[-1])
        items, group = np.arange(len(answers)), np.zeros(len(answers), np.int64)  # a group is a node of the level
        nodes, counts, tokens, nexts = 1, [], [], []
        for depth in range(int(lengths.max())):
            token = flat[offsets[items] + depth]
            order = np.lexsort((token, group))
            items, group, token = items[order], group[order], token[order]
            new = np.ones(len(items), bool)
            new[1:] = (group[1:] != group[:-1]) | (token[1:] != token[:-1])
            edge, begin = new.cumsum() - 1, new.nonzero()[0]
            shared = np.diff(begin, append=len(items)) > 1
            counts.append(np.bincount(group[begin]))
            tokens.append(token[begin])
            nexts.append(np.where(shared, nodes + shared.cumsum() - 1, ~items[begin]))
            nodes += int(shared.sum())
            keep = shared[edge]
            items, group = items[keep], (shared.cumsum() - 1)[edge[keep]]
            if not len(items):
                break
            if (short := items[lengths[items] == depth + 1]).size:
                raise ValueError(
                    f"The tokens of item {short[0]} ({answers[short[0]]}) equal or begin those of another item. "
                    "Merge equal titles and end every title with EOS."
                )
        pointers = np.concatenate([[0], np.concatenate(counts).cumsum()])
        arrays = (pointers, np.concatenate(tokens), np.concatenate(nexts), flat, offsets)
        return cls(*map(torch.from_numpy, arrays))

    def __len__(self) -> int:
        """Number of items."""
        return len(self.offsets) - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest title, EOS included."""
        return int(self.offsets.diff().max())

    def reach(self, value_BI: Tensor) -> Tensor:
        """Return the sum of the values of all items behind each edge: [B, I] to [B, E]."""
        levels = [(0, 1)]  # nodes of a level are consecutive, and follow those of the levels above
        while (begin := levels[-1])[0] < begin[1]:
            edges = self.next[self.pointers[begin[0]] : self.pointers[begin[1]]]
            levels.append((begin[1], begin[1] + int((edges >= 0).sum())))
        node_BN = value_BI.new_zeros(len(value_BI), len(self.pointers) - 1)
        edge_BE = value_BI.new_zeros(len(value_BI), len(self.next))
        owner_E = torch.repeat_interleave(self.pointers.diff())
        for low, high in reversed(levels[:-1]):
            part = slice(int(self.pointers[low]), int(self.pointers[high]))
            to_E = self.next[part]
            deeper_BE, leaf_BE = node_BN[:, to_E.clamp(min=0)], value_BI[:, (~to_E).clamp(min=0)]
            edge_BE[:, part] = torch.where(to_E >= 0, deeper_BE, leaf_BE)
            node_BN.index_add_(1, owner_E[part], edge_BE[:, part])
        return edge_BE

    def to(self, device: torch.device) -> Trie:
        """Return the same trie on ``device``."""
        return Trie(*(a.to(device) for a in (self.pointers, self.tokens, self.next, self.answers, self.offsets)))
