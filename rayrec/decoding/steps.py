"""A search in the catalogue's trie: the edges of the live beams, the beams that the best of them make, step by step.

On a GPU no step waits for the host: the sizes of a step do not depend on numbers of the one before.
Shapes: B prompts, W beams, N of them in a step, C edges of a prompt, S steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rayrec.decoding.packed import Late, PromptCache
from rayrec.decoding.trie import Trie, logsumexp_by
from rayrec.topk import stable_topk


@dataclass
class Beams:
    """W beams of B prompts, live ones first.

    ``next`` is the trie node, or ``~item`` once stopped; ``token`` is the last one read, ``depth`` counts those read,
    ``path`` names their columns in the cache, as far as they were computed. A place without a beam scores -inf.
    ``more`` has further values of each beam by name, [B, W] each.
    """

    score_BW: Tensor
    next_BW: Tensor
    token_BW: Tensor
    depth_BW: Tensor
    path_BWS: Tensor
    more: dict[str, Tensor]

    @classmethod
    def start(cls, score_B1: Tensor, **more: Tensor) -> Beams:
        """Return one beam of each prompt at the root."""
        zero_B1 = torch.zeros_like(score_B1, dtype=torch.long)
        return cls(score_B1, zero_B1, zero_B1, zero_B1, zero_B1[:, :, None][:, :, :0], more)


class Edges(NamedTuple):
    """The edges from the nodes of the N beams of a step, those of a beam one after the other; [B, C] each."""

    beam_BC: Tensor
    """The beam of each, of the prompt's N."""
    edge_BC: Tensor
    """Their numbers in the trie."""
    logit_BC: Tensor
    """Of their tokens, -inf where there is no edge."""
    there_BC: Tensor
    """Whether there is an edge: prompts have different numbers of them."""
    count_BN: Tensor
    """Edges of each beam, 0 of a stopped one."""

    def of_beams(self, value_BW: Tensor) -> Tensor:
        """Return the value of each edge's beam, [B, C]."""
        return value_BW.gather(1, self.beam_BC)

    def logsumexp(self, value_BC: Tensor) -> Tensor:
        """Return log Σ exp over the edges of each beam, [B, N]; the values are -inf where there is no edge."""
        B, N = self.count_BN.shape
        owner_BC = self.beam_BC + N * torch.arange(B, device=value_BC.device)[:, None]
        return logsumexp_by(value_BC.flatten(), owner_BC.flatten(), self.count_BN.flatten()).view(B, N)


#: The beams that follow edges of the trie, from beams, their edges, and the logits of the N beams of the step.
Extend = Callable[[Beams, Edges, Tensor], Beams]


def search(
    cache: PromptCache, beams: Beams, trie: Trie, width: int, extend: Extend, open_BE: Tensor | None = None
) -> Beams:
    """Return the beams after ``extend`` has followed edges from their nodes until all of them have stopped.

    ``extend`` returns ``width`` beams. ``open_BE`` names the edges of the trie that are there for each prompt, by
    default all.
    """
    sizes, logits_BNV = _Sizes(trie, width), cache.logits_B1V
    size = sizes.after(beams.next_BW)
    while size is not None:
        beams = extend(beams, _edges(beams, logits_BNV, trie, size.edges, open_BE), logits_BNV)
        size = sizes.after(beams.next_BW)
        if size is not None:
            logits_BNV = _read(cache, beams, size.beams)
    return beams


class _Size(NamedTuple):
    """Beams and edges of a prompt that a step has room for; more room than needed is padding and changes no result."""

    beams: int
    edges: int


class _Sizes:
    """The size of each step.

    On a CPU it is what the beams need. Another device would stand still while the host reads that. There a step is as
    large as the trie allows, which is at most the size of its logits, and the host reads one step late whether a beam
    still lives, so a search takes one step more.
    """

    def __init__(self, trie: Trie, width: int):
        self.trie, self.stopped = trie, Late(trie.next.device)
        self.bounds = iter(trie.bounds(width)) if self.stopped.late else None

    def after(self, next_BW: Tensor) -> _Size | None:
        """Return the size of the step of the beams at these nodes; None where all have stopped."""
        if self.bounds is None:
            most = torch.stack([(next_BW >= 0).sum(1).max(), _counts(next_BW, self.trie).sum(1).max()])
            size = _Size(*most.tolist())
            return size if size.beams else None
        if self.stopped((next_BW < 0).all()):
            return None
        return next((_Size(*bound) for bound in self.bounds), None)


def _counts(next_BW: Tensor, trie: Trie) -> Tensor:
    """Return the number of edges of each beam, 0 of a stopped one."""
    node_BW = next_BW.clamp(min=0)
    return (trie.pointers[node_BW + 1] - trie.pointers[node_BW]).where(next_BW >= 0, 0)


def _edges(beams: Beams, logits_BNV: Tensor, trie: Trie, most: int, open_BE: Tensor | None) -> Edges:
    """Return the edges of the first N beams, at most ``most`` of a prompt, with the logits of their tokens."""
    B, N, V = logits_BNV.shape
    next_BN = beams.next_BW[:, :N]
    count_BN = _counts(next_BN, trie)
    end_BN = count_BN.cumsum(1)
    place_BC = torch.arange(most, device=end_BN.device).expand(B, -1)
    beam_BC = torch.searchsorted(end_BN, place_BC.contiguous(), right=True)
    there_BC, beam_BC = beam_BC < N, beam_BC.clamp(max=N - 1)
    begin_BN = trie.pointers[next_BN.clamp(min=0)] - end_BN + count_BN
    edge_BC = (begin_BN.gather(1, beam_BC) + place_BC).where(there_BC, 0)
    if open_BE is not None:
        there_BC &= open_BE.gather(1, edge_BC)
    logit_BC = logits_BNV.flatten(1).gather(1, beam_BC * V + trie.tokens[edge_BC])
    return Edges(beam_BC, edge_BC, logit_BC.where(there_BC, -torch.inf), there_BC, count_BN)


def follow(beams: Beams, edges: Edges, score_BC: Tensor, trie: Trie, width: int, **more_BC: Tensor) -> Beams:
    """Return the ``width`` best of the beams that follow an edge, which score ``score``, and of those that stopped.

    Ties are in the order of edges, before stopped beams. ``more_BC`` is ``more`` of a beam that follows an edge.
    """
    C = score_BC.shape[1]
    stopped_BW = beams.score_BW.where(beams.next_BW < 0, -torch.inf)
    score_BC = torch.cat([score_BC.where(edges.there_BC, -torch.inf), stopped_BW], 1)
    pick_BW = stable_topk(score_BC, width)

    score_BW, stays_BW, edge_BW = score_BC.gather(1, pick_BW), pick_BW >= C, pick_BW.clamp(max=C - 1)
    parent_BW = torch.where(stays_BW, pick_BW - C, edges.beam_BC.gather(1, edge_BW))
    number_BW = edges.edge_BC.gather(1, edge_BW)

    def taken(old_BW: Tensor, new_BW: Tensor) -> Tensor:
        return torch.where(stays_BW, old_BW.gather(1, parent_BW), new_BW)

    next_BW = taken(beams.next_BW, trie.next[number_BW]).where(score_BW > -torch.inf, -1)
    order_BW = (next_BW < 0).int().argsort(dim=1, stable=True)
    path_BW = parent_BW.gather(1, order_BW)[:, :, None].expand(-1, -1, beams.path_BWS.shape[2])
    further = {name: taken(beams.more[name], value_BC.gather(1, edge_BW)) for name, value_BC in more_BC.items()}
    return Beams(
        score_BW.gather(1, order_BW),
        next_BW.gather(1, order_BW),
        taken(beams.token_BW, trie.tokens[number_BW]).gather(1, order_BW),
        (beams.depth_BW.gather(1, parent_BW) + ~stays_BW).gather(1, order_BW),
        beams.path_BWS.gather(1, path_BW),
        {name: value_BW.gather(1, order_BW) for name, value_BW in further.items()},
    )


def _read(cache: PromptCache, beams: Beams, N: int) -> Tensor:
    """Read the last tokens of the first N beams and return the logits that follow, [B, N, V]."""
    own_BW1 = torch.full_like(beams.next_BW, cache.root)[:, :, None]
    own_BW1[:, :N, 0] = torch.arange(cache.columns, cache.columns + N, device=own_BW1.device)
    beams.path_BWS = torch.cat([beams.path_BWS, own_BW1.where(beams.next_BW[:, :, None] >= 0, cache.root)], 2)
    position_BN = cache.lengths[:, None] + beams.depth_BW[:, :N] - 1
    return cache.forward(beams.token_BW[:, :N], position_BN, beams.path_BWS[:, :N])
