"""Beam search that can only write catalogue titles.

The beams of a prompt share one row and one cache (see ``packed``). A step gathers the candidates of each beam from its
trie node, never from the vocabulary. A beam whose title is unique stops: it keeps its place with the score so far,
which is an upper bound; when the search ends, the scores of stopped beams are completed exactly.
Shapes: B prompts, W beams, N of them live, C candidate columns, S steps, V vocabulary; E counts ragged elements
(candidates, or tokens of tails).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayrec.decoding.packed import PromptCache, batches
from rayrec.decoding.trie import Trie
from rayrec.topk import stable_topk

#: Most logits of one pass over tails, if one column of tails has no more: 256 MiB of float32.
TAIL_LOGITS = 1 << 26
#: Weights of the language model from which D3 takes the best on the validation rows.
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class _Beams:
    """W beams of B prompts, live ones first.

    ``next`` is the trie node, or ``~item`` once stopped; ``token`` is the last one read, ``depth`` counts those read,
    ``path`` names their columns in the cache, as far as they were computed. ``prior`` is the prior's part of the score.
    A place without a beam scores -inf.
    """

    score_BW: Tensor
    next_BW: Tensor
    token_BW: Tensor
    depth_BW: Tensor
    path_BWS: Tensor
    prior_BW: Tensor


@dataclass(frozen=True)
class Prior:
    """A recommender's log-probability of every item after each prompt, [prompts, I], for D3 (Bao et al. 2024).

    A beam scores ``alpha`` times its log-probability plus 1 - ``alpha`` times the log of the summed probability of all
    items below its node. An item ends with alpha · log P(title + EOS | prompt) + (1 - alpha) · log p(item).
    """

    logprob_PI: Tensor
    alpha: float


@torch.inference_mode()
def beam_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    trie: Trie,
    width: int,
    *,
    return_best: int | None = None,
    batch: int | None = None,
    prior: Prior | None = None,
    allowed_PI: Tensor | None = None,
) -> list[list[tuple[int, float]]]:
    """Return the best ``width`` items of each prompt, best first, with log P(title + EOS | prompt) in nats.

    Items are distinct, ties are in the order of items, and probabilities are over the full vocabulary. A width of the
    catalogue's size ranks exhaustively. ``return_best`` cuts the lists and saves the work on titles that cannot enter
    them. ``batch`` prompts are computed together, by default 16 on a CPU, where padding costs most, and 64 elsewhere;
    it changes rounding only. A ``prior`` changes the scores as its class describes. ``allowed_PI`` (bool, [prompts, I])
    names the items that each list may hold, by default all.

    Raises:
        ValueError: a width below 1, or a model or prompt that the packed pass cannot compute exactly.
    """
    best = width if return_best is None else return_best
    batch = (16 if model.device.type == "cpu" else 64) if batch is None else batch
    if min(width, best, batch) < 1:
        raise ValueError(f"width {width}, return_best {return_best} and batch {batch} must be at least 1.")
    trie, found = trie.to(model.device), {}
    for rows in batches(prompts, batch):
        cache = PromptCache(model, [prompts[i] for i in rows], trie.longest, spare=4 * width)
        edges = _EdgePrior(prior, trie, rows) if prior else None
        open_BE = None if allowed_PI is None else trie.reach(allowed_PI[rows].to(model.device).float()) > 0
        found.update(zip(rows, _search(cache, trie, width, best, edges, open_BE), strict=True))
    return [found[i][:best] for i in range(len(prompts))]


class _EdgePrior:
    """The prior of the prompts ``rows`` by edge of the trie: its part of the score of a beam that takes the edge."""

    def __init__(self, prior: Prior, trie: Trie, rows: list[int]):
        prob_BI = prior.logprob_PI[rows].double().exp().to(trie.next.device)
        prob_BE = trie.reach(prob_BI).clamp(min=torch.finfo(torch.float64).tiny, max=1.0)
        self.alpha = prior.alpha
        self.score_BE = ((1 - prior.alpha) * prob_BE.log()).float()


def _search(
    cache: PromptCache, trie: Trie, width: int, best: int, prior: _EdgePrior | None, open_BE: Tensor | None
) -> list[list[tuple[int, float]]]:
    start = torch.zeros_like(cache.lengths)[:, None]
    beams = _Beams(start.float(), start, start, start, start[:, :, None][:, :, :0], start.float())
    beams = _extend(beams, cache.logits_B1V, trie, width, prior, open_BE)
    while live := int((beams.next_BW >= 0).sum(1).max()):
        own_BW1 = torch.full_like(beams.next_BW, cache.root)[:, :, None]
        own_BW1[:, :live, 0] = torch.arange(cache.columns, cache.columns + live, device=start.device)
        beams.path_BWS = torch.cat([beams.path_BWS, own_BW1.where(beams.next_BW[:, :, None] >= 0, cache.root)], 2)
        position_BN = cache.lengths[:, None] + beams.depth_BW[:, :live] - 1
        logits_BNV = cache.forward(beams.token_BW[:, :live], position_BN, beams.path_BWS[:, :live])
        beams = _extend(beams, logits_BNV, trie, width, prior, open_BE)
    _complete(cache, beams, trie, best, prior.alpha if prior else 1.0)
    return [
        sorted(((~n, s) for n, s in zip(*row, strict=True) if s > -torch.inf), key=lambda x: (-x[1], x[0]))
        for row in zip(beams.next_BW.tolist(), beams.score_BW.tolist(), strict=True)
    ]


def _extend(
    beams: _Beams, logits_BNV: Tensor, trie: Trie, width: int, prior: _EdgePrior | None, open_BE: Tensor | None
) -> _Beams:
    """Return the best ``width`` of the live beams' children and the stopped beams, live ones first."""
    B, N, _ = logits_BNV.shape
    next_N = beams.next_BW[:, :N].flatten()
    node_N = next_N.clamp(min=0)
    count_N = (trie.pointers[node_N + 1] - trie.pointers[node_N]).where(next_N >= 0, 0)
    beam_E, rank_E, first_N = _ragged(count_N)
    edge_E = trie.pointers[node_N][beam_E] + rank_E
    norm_N = logits_BNV.logsumexp(-1).flatten()
    logp_E = (logits_BNV.flatten(0, 1)[beam_E, trie.tokens[edge_E]] - norm_N[beam_E]).clamp(max=0)
    prompt_E, first_B = beam_E // N, first_N[::N]
    prior_E = torch.zeros_like(logp_E)
    if prior:
        prior_E = prior.score_BE[prompt_E, edge_E]
        logp_E = prior.alpha * logp_E + prior_E - beams.prior_BW[:, :N].flatten()[beam_E]

    if open_BE is not None:
        logp_E = logp_E.masked_fill(~open_BE[prompt_E, edge_E], -torch.inf)
    most = int(count_N.view(B, N).sum(1).max())
    score_BC = logits_BNV.new_full((B, most + beams.score_BW.shape[1]), -torch.inf)  # children, then stopped beams
    score_BC[prompt_E, torch.arange(len(beam_E), device=beam_E.device) - first_B[prompt_E]] = (
        beams.score_BW[:, :N].flatten()[beam_E] + logp_E
    ).clamp(max=0)
    score_BC[:, most:] = beams.score_BW.where(beams.next_BW < 0, -torch.inf)
    pick_BW = stable_topk(score_BC, width)

    score_BW, stays_BW = score_BC.gather(1, pick_BW), pick_BW >= most
    flat_BW = (first_B[:, None] + pick_BW).clamp(max=len(beam_E) - 1)
    parent_BW = torch.where(stays_BW, pick_BW - most, beam_E[flat_BW] % N)
    edge_BW = edge_E[flat_BW]
    next_BW = torch.where(stays_BW, beams.next_BW.gather(1, parent_BW), trie.next[edge_BW])
    next_BW = next_BW.where(score_BW > -torch.inf, -1)
    token_BW = torch.where(stays_BW, beams.token_BW.gather(1, parent_BW), trie.tokens[edge_BW])
    depth_BW = beams.depth_BW.gather(1, parent_BW) + ~stays_BW
    prior_BW = torch.where(stays_BW, beams.prior_BW.gather(1, parent_BW), prior_E[flat_BW])

    order_BW = (next_BW < 0).int().argsort(dim=1, stable=True)
    score_BW, next_BW, token_BW, depth_BW, parent_BW, prior_BW = (
        x.gather(1, order_BW) for x in (score_BW, next_BW, token_BW, depth_BW, parent_BW, prior_BW)
    )
    path_BWS = beams.path_BWS.gather(1, parent_BW[:, :, None].expand(-1, -1, beams.path_BWS.shape[2]))
    return _Beams(score_BW, next_BW, token_BW, depth_BW, path_BWS, prior_BW)


def _complete(cache: PromptCache, beams: _Beams, trie: Trie, best: int, alpha: float) -> None:
    """Complete the scores of stopped beams; those that cannot be among the ``best`` score -inf.

    A stopped beam's score bounds its exact one from above. So the ``best`` highest bounds are completed first, then
    only the beams whose bound reaches the lowest exact score of these.
    """
    first_BW = torch.zeros_like(beams.score_BW, dtype=torch.bool)
    first_BW.scatter_(1, stable_topk(beams.score_BW, best), True)
    _add_tails(cache, beams, trie, first_BW, alpha)
    floor_B1 = beams.score_BW.where(first_BW, torch.inf).amin(1, keepdim=True)
    second_BW = ~first_BW & (beams.score_BW >= floor_B1)
    _add_tails(cache, beams, trie, second_BW, alpha)
    beams.score_BW.masked_fill_(~first_BW & ~second_BW, -torch.inf)


def _add_tails(cache: PromptCache, beams: _Beams, trie: Trie, chosen_BW: Tensor, alpha: float) -> None:
    """Add ``alpha`` log P of the rest of each chosen title: all tails of a prompt in one row, after their branches."""
    B, W = beams.next_BW.shape
    item_BW = ~beams.next_BW
    tail_BW = trie.offsets[item_BW + 1] - trie.offsets[item_BW] - beams.depth_BW
    tail_BW = tail_BW.where(chosen_BW & (beams.score_BW > -torch.inf), 0)
    if not (longest := int(tail_BW.max())):
        return
    columns, room = cache.columns, max(1, TAIL_LOGITS // (B * cache.logits_B1V.shape[-1]))
    parts = torch.unique_consecutive(tail_BW.cumsum(1).amax(0) // room, return_counts=True)[1].tolist()
    for part_C in torch.arange(W, device=item_BW.device).split(parts):
        beam_E, rank_E, first_C = _ragged(tail_BW[:, part_C].flatten())
        if not len(beam_E):
            continue
        prompt_E = beam_E // len(part_C)
        slot_E = torch.arange(len(beam_E), device=beam_E.device) - first_C[:: len(part_C)][prompt_E]
        depth_E = beams.depth_BW[:, part_C].flatten()[beam_E] + rank_E
        answer_E = trie.offsets[item_BW[:, part_C].flatten()[beam_E]] + depth_E
        back_EL = torch.arange(longest, device=beam_E.device).expand(len(beam_E), -1)
        own_EL = (columns + slot_E[:, None] - back_EL).where(back_EL <= rank_E[:, None], cache.root)
        path_ES = torch.cat([beams.path_BWS[:, part_C].flatten(0, 1)[beam_E], own_EL], 1)

        size = B, int(tail_BW[:, part_C].sum(1).max())
        token_BN, position_BN = torch.zeros(2, *size, dtype=torch.long, device=beam_E.device)
        path_BNS = torch.full((*size, path_ES.shape[1]), cache.root, device=beam_E.device)
        token_BN[prompt_E, slot_E] = trie.answers[answer_E - 1]
        position_BN[prompt_E, slot_E] = cache.lengths[prompt_E] + depth_E - 1
        path_BNS[prompt_E, slot_E] = path_ES
        logits_BNV = cache.forward(token_BN, position_BN, path_BNS)
        logp_E = logits_BNV[prompt_E, slot_E, trie.answers[answer_E]] - logits_BNV.logsumexp(-1)[prompt_E, slot_E]
        logp_CL = logp_E.new_zeros(B * len(part_C), longest)
        logp_CL[beam_E, rank_E] = logp_E.clamp(max=0)
        beams.score_BW[:, part_C] += alpha * logp_CL.sum(1).view(B, -1)
        cache.rewind(columns)


def _ragged(count_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return owner and rank within the owner of each of E = sum(count) elements, and each owner's first element."""
    first_N = count_N.cumsum(0) - count_N
    owner_E = torch.repeat_interleave(count_N)
    return owner_E, torch.arange(len(owner_E), device=count_N.device) - first_N[owner_E], first_N
