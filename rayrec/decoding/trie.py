"""The catalogue as a prefix tree of token ids, in flat arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Trie:
    """A prefix tree that ends as soon as a title is unique; node 0 is the root, nodes are numbered breadth first.

    The edges of node v are ``pointers[v]`` to ``pointers[v + 1] - 1``, in the order of their tokens. Edge e reads
    ``tokens[e]`` and leads to the node ``next[e]`` or, where only item i is left, to ``~i`` (negative). The whole
    title is ``answers[offsets[i]:offsets[i + 1]]``, and ``nodes`` has in the same places the node at which each of its
    tokens is chosen, -1 behind the last edge. All arrays are int64.
    """

    pointers: Tensor
    tokens: Tensor
    next: Tensor
    answers: Tensor
    offsets: Tensor
    nodes: Tensor

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
        at, above = np.full(len(flat), -1, np.int64), 0  # the node of each token, and the first node of the level
        nodes, counts, tokens, nexts = 1, [], [], []
        for depth in range(int(lengths.max())):
            at[offsets[items] + depth] = above + group
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
            above, nodes = nodes, nodes + int(shared.sum())
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
        arrays = (pointers, np.concatenate(tokens), np.concatenate(nexts), flat, offsets, at)
        return cls(*map(torch.from_numpy, arrays))

    def __len__(self) -> int:
        """Number of items."""
        return len(self.offsets) - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest title, EOS included."""
        return int(self.offsets.diff().max())

    @cached_property
    def levels(self) -> list[slice]:
        """The edges of each level: its nodes are consecutive, and follow those of the levels above."""
        pointers, next_E = self.pointers.cpu(), self.next.cpu()
        low, high, found = 0, 1, list[slice]()
        while low < high:
            found.append(slice(int(pointers[low]), int(pointers[high])))
            low, high = high, high + int((next_E[found[-1]] >= 0).sum())
        return found

    @cached_property
    def _degrees(self) -> list[Tensor]:
        """The edges of the nodes of each level, most first, summed up from the first node on."""
        pointers = self.pointers.cpu()
        first = torch.searchsorted(pointers, torch.tensor([level.start for level in self.levels[1:]]))
        return [some_N.sort(descending=True).values.cumsum(0) for some_N in pointers.diff().tensor_split(first)]

    def bounds(self, width: int) -> list[tuple[int, int]]:
        """Return for each level the most nodes that ``width`` beams can be at, and the most edges of these."""
        live = [min(width, len(sums_N)) for sums_N in self._degrees]
        return [(n, int(sums_N[n - 1])) for n, sums_N in zip(live, self._degrees, strict=True)]

    def reach(self, value_BI: Tensor) -> Tensor:
        """Return the sum of the values of all items behind each edge: [B, I] to [B, E]."""
        node_BN = value_BI.new_zeros(len(value_BI), len(self.pointers) - 1)
        edge_BE = value_BI.new_zeros(len(value_BI), len(self.next))
        owner_E = torch.repeat_interleave(self.pointers.diff())
        for part in reversed(self.levels):
            to_E = self.next[part]
            deeper_BE, leaf_BE = node_BN[:, to_E.clamp(min=0)], value_BI[:, (~to_E).clamp(min=0)]
            edge_BE[:, part] = torch.where(to_E >= 0, deeper_BE, leaf_BE)
            node_BN.index_add_(1, owner_E[part], edge_BE[:, part])
        return edge_BE

    def to(self, device: torch.device) -> Trie:
        """Return the same trie on ``device``."""
        if device == self.next.device:
            return self
        return Trie(*(getattr(self, field.name).to(device) for field in fields(self)))

    def legal(self, item_N: Tensor, offset_N: Tensor) -> Legal:
        """Return the legal tokens at place ``offset`` of the title of ``item``, for each of N tokens; -1 is no item."""
        place_N = self.offsets[item_N.clamp(min=0)] + offset_N
        node_N = self.nodes[place_N.clamp(max=len(self.nodes) - 1)].where(item_N >= 0, -1)
        begin_N = self.pointers[node_N.clamp(min=0)]
        count_N = (self.pointers[node_N.clamp(min=0) + 1] - begin_N).where(node_N >= 0, 0)
        owner_E, rank_E, _ = ragged(count_N)
        edge_E = begin_N[owner_E] + rank_E
        ends = [0, *accumulate(count_N.tolist())]
        return Legal(node_N, count_N, owner_E, edge_E, self.tokens[edge_E], ends)


@dataclass(frozen=True)
class Legal:
    """The legal tokens of N answer tokens: E edges of the trie, those of a token one after the other.

    Answer token n is chosen at the node ``node_N``, among ``count_N`` edges; behind the last edge of its title nothing
    is left to choose, and these are -1 and 0. Edge e is one of token ``owner_E``, is ``edge_E`` in the trie, and reads
    ``token_E``. ``ends[n]`` edges come before those of token n; they stay with the host, so that a cut never waits for
    a device.
    """

    node_N: Tensor
    count_N: Tensor
    owner_E: Tensor
    edge_E: Tensor
    token_E: Tensor
    ends: list[int]

    def to(self, device: torch.device | str) -> Legal:
        """Return the same on ``device``."""
        node_N, count_N, *edges = (
            x.to(device) for x in (self.node_N, self.count_N, self.owner_E, self.edge_E, self.token_E)
        )
        return Legal(node_N, count_N, edges[0], edges[1], edges[2], self.ends)

    def cut(self, begin: int, end: int) -> Legal:
        """Return the part of the answer tokens ``begin`` to ``end`` - 1."""
        edges = slice(self.ends[begin], self.ends[end])
        ends = [count - edges.start for count in self.ends[begin : end + 1]]
        parts = self.owner_E[edges] - begin, self.edge_E[edges], self.token_E[edges]
        return Legal(self.node_N[begin:end], self.count_N[begin:end], *parts, ends)

    def logsumexp(self, value_E: Tensor) -> Tensor:
        """Return log Σ exp over the edges of each answer token, [N]; 0 where it has none."""
        return logsumexp_by(value_E, self.owner_E, self.count_N)

    def sum(self, value_E: Tensor) -> Tensor:
        """Return the sum over the edges of each answer token, [N]."""
        return value_E.new_zeros(self.count_N.shape).index_add(0, self.owner_E, value_E)

    def largest(self, value_E: Tensor, k: int) -> Tensor:
        """Return the ``k``-th largest value among the edges of each answer token, the smallest where it has fewer, [N].

        0 where it has none.
        """
        if not len(value_E):
            return value_E.new_zeros(self.count_N.shape)
        down_E = value_E.argsort(descending=True, stable=True)
        down_E = down_E[self.owner_E[down_E].argsort(stable=True)]
        place_N = self.count_N.cumsum(0) - self.count_N + self.count_N.clamp(max=k) - 1
        return value_E[down_E][place_N.clamp(min=0)].where(self.count_N > 0, 0.0)


def logsumexp_by(value_E: Tensor, owner_E: Tensor, count_N: Tensor) -> Tensor:
    """Return log Σ exp over the values of each owner, [N]; 0 for an owner of none."""
    fixed_E = value_E.detach()
    most_N = fixed_E.new_full(count_N.shape, -torch.inf).scatter_reduce(0, owner_E, fixed_E, "amax")
    most_N = most_N.where(count_N > 0, 0.0)
    sum_N = value_E.new_zeros(count_N.shape).index_add(0, owner_E, (value_E - most_N[owner_E]).exp())
    return sum_N.where(count_N > 0, 1.0).log() + most_N


def ragged(count_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return owner and rank within the owner of each of E = sum(count) elements, and each owner's first element.

    The device is waited for.
    """
    first_N = count_N.cumsum(0) - count_N
    owner_E = torch.repeat_interleave(count_N)
    return owner_E, torch.arange(len(owner_E), device=count_N.device) - first_N[owner_E], first_N
