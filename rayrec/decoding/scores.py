"""Scores of given answers over the vocabulary or over the catalogue, in packed passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rayrec.decoding.beam import Normalise
from rayrec.decoding.trie import Legal, Trie
from rayrec.models.logprobs import PackedLM, Row, pack

#: Examples of one pass.
PACKED = 8


def titles_of(answers: list[list[int]]) -> dict[tuple[int, ...], int]:
    """Return the item's number by the tokens of its title, EOS included."""
    return {tuple(answer): item for item, answer in enumerate(answers)}


@torch.inference_mode()
def score_answers(
    lm: PackedLM, examples: Sequence[Row], trie: Trie, items: Mapping[tuple[int, ...], int], normalise: Normalise
) -> list[list[tuple[float, float | None]]]:
    """Return log P(answer | prompt) of every answer in nats, and ``kept``, as a beam search measures it.

    ``items`` are those of :func:`titles_of`. An answer that is no title has ``kept`` None, and over the catalogue a
    log-probability of -inf.
    """
    device, made = lm.model.device, list[list[tuple[float, float | None]]]()
    trie, over_titles = trie.to(device), normalise == "catalogue"
    for start in range(0, len(examples), PACKED):
        some = examples[start : start + PACKED]
        packed = pack(some)
        B, A = packed.lengths_BA.shape
        item_BA = [[items.get(tuple(one), -1) for one in answers] + [-1] * (A - len(answers)) for _, answers in some]
        packed, item_N = packed.to(device), torch.tensor(item_BA, device=device).view(B * A)
        legal = trie.legal(item_N[packed.answer_N], packed.offset_N)
        logp_BA, kept_BA = (value_BA.tolist() for value_BA in lm(packed, legal, _values))
        for (_, answers), *columns in zip(some, item_BA, logp_BA, kept_BA, strict=True):
            row = list[tuple[float, float | None]]()
            for _, item, logp, kept in zip(answers, *columns, strict=False):
                known = item >= 0
                lost = kept if known else math.inf
                row.append((min(0.0, logp - lost) if over_titles else logp, kept if known else None))
            made.append(row)
    return made


def _values(logits_NV: Tensor, target_N: Tensor, legal: Legal) -> tuple[Tensor, Tensor]:
    """Return log π of each token, and the log of what is kept for titles: behind the last choice the token alone."""
    logp_N = -nn.functional.cross_entropy(logits_NV, target_N, reduction="none")
    kept_N = legal.logsumexp(logits_NV[legal.owner_E, legal.token_E]) - logits_NV.logsumexp(-1)
    return logp_N, kept_N.clamp(max=0).where(legal.count_N > 0, logp_N)
