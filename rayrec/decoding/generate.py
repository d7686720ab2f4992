"""Free text from any Hugging Face causal LM, with exact sequence log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayrec.decoding.packed import Late, PromptCache, batches


@dataclass(frozen=True)
class Generated:
    """One answer: its tokens, EOS included if it was written, and their summed log-probability in nats."""

    token_ids: list[int]
    logprob: float


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: list[list[int]],
    eos_id: int,
    *,
    max_new_tokens: int,
    mode: Literal["greedy", "sample", "beam"] = "greedy",
    n: int = 1,
    seed: int = 0,
    batch: int = 64,
) -> list[list[Generated]]:
    """Return answers to each prompt, best first for ``beam``.

    ``greedy`` gives one answer; ``sample`` gives n independent ones at temperature 1, all drawn from one random
    generator that starts at ``seed``; ``beam`` keeps n beams and gives up to n finished answers, ranked by summed
    log-probability without length penalty. A greedy or sampled answer of ``max_new_tokens`` may have no EOS. ``batch``
    prompts are computed together.

    Raises:
        ValueError: an unknown mode, a count below 1, greedy with n > 1, or a model or prompt that the packed pass
            cannot compute exactly.
    """
    if mode not in ("greedy", "sample", "beam"):
        raise ValueError(f"Found mode '{mode}', wanted greedy, sample or beam.")
    if min(n, max_new_tokens, batch) < 1 or (mode == "greedy" and n > 1):
        found = f"n {n}, max_new_tokens {max_new_tokens}, batch {batch}"
        raise ValueError(f"Found {found}, wanted at least 1 each, and n 1 for greedy.")
    generator = torch.Generator(model.device).manual_seed(seed) if mode == "sample" else None
    result: dict[int, list[Generated]] = {}
    for rows in batches(prompts, batch):
        cache = PromptCache(model, [prompts[i] for i in rows], max_new_tokens, spare=8 * n)
        if mode == "beam":
            answers = _beams(cache, eos_id, max_new_tokens, n)
        else:
            answers = _chains(cache, eos_id, max_new_tokens, n, generator)
        result.update(zip(rows, answers, strict=True))
    return [result[i] for i in range(len(prompts))]


def _chains(
    cache: PromptCache, eos_id: int, max_new_tokens: int, n: int, generator: torch.Generator | None
) -> list[list[Generated]]:
    """Extend n chains of each prompt by their likeliest token, or by a drawn one if there is a random generator."""
    logp_BNV = cache.logits_B1V.log_softmax(-1).expand(-1, n, -1)
    B = len(logp_BNV)
    done_BN = torch.zeros(B, n, dtype=torch.bool, device=logp_BNV.device)
    score_BN = logp_BNV.new_zeros(B, n, dtype=torch.float64)
    tokens_BNS = path_BNS = torch.empty(B, n, 0, dtype=torch.long, device=logp_BNV.device)
    stopped = Late(done_BN.device)
    for step in range(max_new_tokens):
        if generator is None:
            token_BN = logp_BNV.argmax(-1)
        else:
            token_BN = torch.multinomial(logp_BNV.exp().flatten(0, 1), 1, generator=generator).view(B, n)
        score_BN += logp_BNV.gather(2, token_BN[:, :, None])[:, :, 0].where(~done_BN, 0)
        tokens_BNS = torch.cat([tokens_BNS, token_BN.where(~done_BN, -1)[:, :, None]], 2)
        done_BN |= token_BN == eos_id
        if step + 1 == max_new_tokens or stopped(done_BN.all()):
            break
        logits_BNV, path_BNS = _step(cache, token_BN, path_BNS)
        logp_BNV = logits_BNV.log_softmax(-1)
    return [
        [Generated([t for t in tokens if t >= 0], score) for tokens, score in zip(*row, strict=True)]
        for row in zip(tokens_BNS.tolist(), score_BN.tolist(), strict=True)
    ]


def _beams(cache: PromptCache, eos_id: int, max_new_tokens: int, width: int) -> list[list[Generated]]:
    """Search over the whole vocabulary until no live beam can enter its prompt's finished answers."""
    logits_BNV = cache.logits_B1V
    B, _, V = logits_BNV.shape
    score_BN = logits_BNV.new_zeros(B, 1)
    tokens_BNS = path_BNS = torch.empty(B, 1, 0, dtype=torch.long, device=logits_BNV.device)
    pools: list[list[Generated]] = [[] for _ in range(B)]
    for step in range(max_new_tokens):
        score_BC = (logits_BNV.log_softmax(-1) + score_BN[:, :, None]).flatten(1)
        best = score_BC.topk(min(2 * width, score_BC.shape[1]), dim=1)  # of 2 W, at most W can be EOS
        parent_BC, token_BC = best.indices // V, best.indices % V
        tokens_BCS = torch.cat([_rows(tokens_BNS, parent_BC), token_BC[:, :, None]], 2)
        for b, c in ((token_BC == eos_id) & (best.values > -torch.inf)).nonzero().tolist():
            pools[b].append(Generated(tokens_BCS[b, c].tolist(), float(best.values[b, c])))
        pools = [sorted(pool, key=lambda g: (-g.logprob, g.token_ids))[:width] for pool in pools]

        live_BN = (token_BC == eos_id).int().argsort(dim=1, stable=True)[:, :width]
        token_BN = token_BC.gather(1, live_BN)
        score_BN = best.values.gather(1, live_BN).where(token_BN != eos_id, -torch.inf)
        closed = [len(p) == width and p[-1].logprob >= s for p, s in zip(pools, score_BN[:, 0].tolist(), strict=True)]
        if step + 1 == max_new_tokens or all(closed):
            break
        path_BNS, tokens_BNS = _rows(path_BNS, parent_BC.gather(1, live_BN)), _rows(tokens_BCS, live_BN)
        logits_BNV, path_BNS = _step(cache, token_BN, path_BNS)
    return pools


def _step(cache: PromptCache, token_BN: Tensor, path_BNS: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits after one more token of each chain, and the chains' columns with it."""
    own_N = torch.arange(cache.columns, cache.columns + token_BN.shape[1], device=token_BN.device)
    path_BNS = torch.cat([path_BNS, own_N.expand_as(token_BN)[:, :, None]], 2)
    position_BN = (cache.lengths[:, None] + path_BNS.shape[2] - 1).expand_as(token_BN)
    return cache.forward(token_BN, position_BN, path_BNS), path_BNS


def _rows(x_BNS: Tensor, index_BM: Tensor) -> Tensor:
    """Return the rows ``index`` of each prompt's table."""
    return x_BNS.gather(1, index_BM[:, :, None].expand(-1, -1, x_BNS.shape[2]))
