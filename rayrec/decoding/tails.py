"""The rest of titles whose beams stopped where they are unique, and whole titles, by the cache of a search.

Shapes: B prompts, W beams, N columns of a pass, S steps, V vocabulary; E counts the tokens of tails, L of the longest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rayrec.decoding.packed import PromptCache
from rayrec.decoding.steps import Beams
from rayrec.decoding.trie import Trie, ragged
from rayrec.topk import stable_topk

#: Most logits of one pass over tails, if one column of tails has no more: 128 MiB of float32.
TAIL_LOGITS = 1 << 25


def complete(cache: PromptCache, beams: Beams, trie: Trie, best: int, alpha: float) -> None:
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


def _add_tails(cache: PromptCache, beams: Beams, trie: Trie, chosen_BW: Tensor, alpha: float) -> None:
    """Add log P of the rest of each chosen title, to the score ``alpha`` times."""
    tail_BW = tails(cache, beams, trie, chosen_BW)
    beams.score_BW += alpha * tail_BW
    if "kept" in beams.more:
        beams.more["kept"] += tail_BW


def tails(cache: PromptCache, beams: Beams, trie: Trie, chosen_BW: Tensor, catalogue: bool = False) -> Tensor:
    """Return log P of the rest of each chosen title, else 0: all tails of a prompt in one row, after their branches.

    ``catalogue``: P is normalised over the tokens that the trie allows.
    """
    B, W = beams.next_BW.shape
    item_BW = ~beams.next_BW
    logp_BW = torch.zeros_like(beams.score_BW)
    tail_BW = trie.offsets[item_BW + 1] - trie.offsets[item_BW] - beams.depth_BW
    tail_BW = tail_BW.where(chosen_BW & (beams.score_BW > -torch.inf), 0)
    if not (longest := int(tail_BW.max())):
        return logp_BW
    columns, room = cache.columns, max(1, TAIL_LOGITS // (B * cache.logits_B1V.shape[-1]))
    parts = torch.unique_consecutive(tail_BW.cumsum(1).amax(0) // room, return_counts=True)[1].tolist()
    for part_C in torch.arange(W, device=item_BW.device).split(parts):
        beam_E, rank_E, first_C = ragged(tail_BW[:, part_C].flatten())
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
        if catalogue:
            item_E = item_BW[:, part_C].flatten()[beam_E]
            logp_E = _over_titles(trie, logits_BNV[prompt_E, slot_E], item_E, depth_E)
        else:
            logp_E = logits_BNV[prompt_E, slot_E, trie.answers[answer_E]] - logits_BNV.logsumexp(-1)[prompt_E, slot_E]
        logp_CL = logp_E.new_zeros(B * len(part_C), longest)
        logp_CL[beam_E, rank_E] = logp_E.clamp(max=0)
        logp_BW[:, part_C] = logp_CL.sum(1).view(B, -1)
        cache.rewind(columns)
    return logp_BW


def log_titles(cache: PromptCache, trie: Trie, item_B: Tensor, catalogue: bool) -> Tensor:
    """Return log P(title + EOS | prompt) of an item of each prompt, [B]; of -1 it is any number."""
    item_B = item_B.clamp(min=0)
    first_BV, start_B = cache.logits_B1V[:, 0], torch.zeros_like(item_B)
    token_B1 = trie.answers[trie.offsets[item_B]][:, None]
    if catalogue:
        logp_B = _over_titles(trie, first_BV, item_B, start_B)
    else:
        logp_B = first_BV.gather(1, token_B1)[:, 0] - first_BV.logsumexp(-1)
    score_B1 = logp_B.clamp(max=0)[:, None]
    path_B1S = start_B[:, None, None][:, :, :0]
    begun = Beams(score_B1, ~item_B[:, None], token_B1, torch.ones_like(token_B1), path_B1S, {})
    all_B1 = torch.ones_like(token_B1, dtype=torch.bool)
    return (score_B1 + tails(cache, begun, trie, all_B1, catalogue))[:, 0]


def _over_titles(trie: Trie, logits_NV: Tensor, item_N: Tensor, depth_N: Tensor) -> Tensor:
    """Return the log-probability of token ``depth`` of each item's title among the tokens that the trie allows."""
    legal = trie.legal(item_N, depth_N)
    own_N = logits_NV.gather(1, trie.answers[trie.offsets[item_N] + depth_N][:, None])[:, 0]
    return (own_N - legal.logsumexp(logits_NV[legal.owner_E, legal.token_E])).where(legal.count_N > 0, 0.0)
