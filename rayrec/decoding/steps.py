"""One step of a search in the catalogue's trie: the edges of the live beams, and the beams that the best of them make.

Shapes: B prompts, W beams, N of them live, E edges of these, C candidates, S steps, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rayrec.decoding.packed import PromptCache
from rayrec.decoding.trie import Trie, ragged
from rayrec.topk import stable_topk


class Sizes(NamedTuple):
    """The sizes of a step, read from the device at once when the step before it ends: nothing else waits for it."""

    live: int
    """Most live beams of a prompt."""
    edges: int
    """Edges of all live beams."""
    most: int
    """Most edges of a prompt."""

    @classmethod
    def of(cls, next_BW: Tensor, trie: Trie) -> Sizes:
        """Return those of the step after beams came to these nodes."""
        edges_B = _edges(next_BW, trie).sum(1)
        return cls(*torch.stack([(next_BW >= 0).sum(1).max(), edges_B.sum(), edges_B.max()]).tolist())


#: Where no step follows.
NONE = Sizes(0, 0, 0)


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
    sizes: Sizes
    """Of the next step."""

    @classmethod
    def start(cls, trie: Trie, score_B1: Tensor, **more: Tensor) -> Beams:
        """Return one beam of each prompt at the root."""
        zero_B1 = torch.zeros_like(score_B1, dtype=torch.long)
        sizes = Sizes.of(zero_B1, trie)
        return cls(score_B1, zero_B1, zero_B1, zero_B1, zero_B1[:, :, None][:, :, :0], more, sizes)


class Edges(NamedTuple):
    """The edges from the nodes of the N live beams of each prompt, one prompt after the other."""

    beam_E: Tensor
    """The beam of each, of B · N."""
    prompt_E: Tensor
    edge_E: Tensor
    """Their numbers in the trie."""
    logit_E: Tensor
    count_N: Tensor
    """Edges of each of the B · N beams, 0 of a stopped one."""
    first_B: Tensor
    """The place of each prompt's first edge."""


def _edges(next_BW: Tensor, trie: Trie) -> Tensor:
    """Return the number of edges of each beam, 0 of a stopped one."""
    node_BW = next_BW.clamp(min=0)
    return (trie.pointers[node_BW + 1] - trie.pointers[node_BW]).where(next_BW >= 0, 0)


def edges_of(beams: Beams, logits_BNV: Tensor, trie: Trie, open_BE: Tensor | None = None) -> Edges:
    """Return the edges of the live beams with the logits of their tokens; logits are given for the first N beams.

    ``open_BE`` names the edges of the trie that are there for each prompt, by default all.
    """
    N = logits_BNV.shape[1]
    next_N = beams.next_BW[:, :N].flatten()
    count_N = _edges(next_N, trie)
    beam_E, rank_E, first_N = ragged(count_N, beams.sizes.edges)
    edge_E = trie.pointers[next_N.clamp(min=0)][beam_E] + rank_E
    if open_BE is not None:
        open_E = open_BE[beam_E // N, edge_E]
        beam_E, edge_E = beam_E[open_E], edge_E[open_E]
        count_N = torch.bincount(beam_E, minlength=len(count_N))
        first_N = count_N.cumsum(0) - count_N
    logit_E = logits_BNV.flatten(0, 1)[beam_E, trie.tokens[edge_E]]
    return Edges(beam_E, beam_E // N, edge_E, logit_E, count_N, first_N[::N])


def follow(beams: Beams, edges: Edges, score_E: Tensor, trie: Trie, width: int, **more_E: Tensor) -> Beams:
    """Return the ``width`` best of the beams that follow an edge, which score ``score``, and of those that stopped.

    Ties are in the order of edges, before stopped beams. ``more_E`` is ``more`` of a beam that follows an edge.
    """
    B, N, most = len(edges.first_B), len(edges.count_N) // len(edges.first_B), beams.sizes.most
    place_E = torch.arange(len(edges.beam_E), device=score_E.device) - edges.first_B[edges.prompt_E]
    score_BC = score_E.new_full((B, most + beams.score_BW.shape[1]), -torch.inf)
    score_BC[edges.prompt_E, place_E] = score_E
    score_BC[:, most:] = beams.score_BW.where(beams.next_BW < 0, -torch.inf)
    pick_BW = stable_topk(score_BC, width)

    score_BW, stays_BW = score_BC.gather(1, pick_BW), pick_BW >= most
    flat_BW = (edges.first_B[:, None] + pick_BW).clamp(max=len(edges.beam_E) - 1)
    parent_BW = torch.where(stays_BW, pick_BW - most, edges.beam_E[flat_BW] % N)
    edge_BW = edges.edge_E[flat_BW]

    def taken(old_BW: Tensor, new_BW: Tensor) -> Tensor:
        return torch.where(stays_BW, old_BW.gather(1, parent_BW), new_BW)

    next_BW = taken(beams.next_BW, trie.next[edge_BW]).where(score_BW > -torch.inf, -1)
    order_BW = (next_BW < 0).int().argsort(dim=1, stable=True)
    path_BW = parent_BW.gather(1, order_BW)[:, :, None].expand(-1, -1, beams.path_BWS.shape[2])
    return Beams(
        score_BW.gather(1, order_BW),
        next_BW.gather(1, order_BW),
        taken(beams.token_BW, trie.tokens[edge_BW]).gather(1, order_BW),
        (beams.depth_BW.gather(1, parent_BW) + ~stays_BW).gather(1, order_BW),
        beams.path_BWS.gather(1, path_BW),
        {name: taken(beams.more[name], value_E[flat_BW]).gather(1, order_BW) for name, value_E in more_E.items()},
        beams.sizes,
    )


def read(cache: PromptCache, beams: Beams, trie: Trie) -> Tensor | None:
    """Read the last tokens of the live beams and return the logits that follow, [B, N, V]; None where all stopped."""
    beams.sizes = Sizes.of(beams.next_BW, trie)
    if not (live := beams.sizes.live):
        return None
    own_BW1 = torch.full_like(beams.next_BW, cache.root)[:, :, None]
    own_BW1[:, :live, 0] = torch.arange(cache.columns, cache.columns + live, device=own_BW1.device)
    beams.path_BWS = torch.cat([beams.path_BWS, own_BW1.where(beams.next_BW[:, :, None] >= 0, cache.root)], 2)
    position_BN = cache.lengths[:, None] + beams.depth_BW[:, :live] - 1
    return cache.forward(beams.token_BW[:, :live], position_BN, beams.path_BWS[:, :live])
