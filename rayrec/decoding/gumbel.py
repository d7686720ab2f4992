"""Distinct titles of a policy, drawn without replacement: Gumbel top-k over the catalogue's trie (Kool et al. 2019).

Every title gets its log-probability over the catalogue plus Gumbel noise, and the k largest sums are the sample. The
noise of a beam is the largest of the noises below it, so a search that keeps the k + 1 largest finds them. The noise
follows from a seed, the example and the edge of the trie alone, so a draw does not depend on its neighbours. Where only
some titles are allowed, probabilities are over these alone, as in the trie that only they would make.
The score of a beam is its perturbed log π_C.
Shapes: B prompts, W beams, N of them live, E edges of these; all of it in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayrec.decoding.packed import PromptCache, batches, together
from rayrec.decoding.steps import Beams, edges_of, follow, read
from rayrec.decoding.trie import Trie, logsumexp_by


class Drawn(NamedTuple):
    """A title of a sample."""

    item: int
    logprob: float
    """log π_C(title | prompt), over the catalogue, in nats."""


class Sample(NamedTuple):
    """Titles without replacement, in the order in which they were drawn."""

    titles: list[Drawn]
    threshold: float
    """κ, the largest perturbed log-probability that is not in the sample; -inf where the sample is the catalogue."""

    def inclusion(self, title: Drawn) -> float:
        """Return the probability that a title is in the sample, given κ: weights 1/q make sums over it unbiased."""
        return -math.expm1(-math.exp(min(title.logprob - self.threshold, 700.0)))


@torch.inference_mode()
def sample_titles(
    model: PreTrainedModel,
    prompts: list[list[int]],
    trie: Trie,
    k: int,
    seeds: list[int],
    batch: int | None = None,
    allowed_PI: Tensor | None = None,
) -> list[Sample]:
    """Draw ``k`` distinct titles for each prompt from its probabilities over the catalogue; fewer where it has fewer.

    ``seeds`` has one for each prompt. ``batch`` prompts are computed together, by default as in a beam search.
    ``allowed_PI`` (bool, [prompts, I]) names the items that each sample may hold, by default all; their probabilities
    sum to 1.

    Raises:
        ValueError: k below 1, or a model or prompt that the packed pass cannot compute exactly.
    """
    batch = together(model.device.type) if batch is None else batch
    if min(k, batch) < 1:
        raise ValueError(f"k {k} and batch {batch} must be at least 1.")
    trie, made = trie.to(model.device), dict.fromkeys(range(len(prompts)), Sample([], -torch.inf))
    asked = [i for i in made if allowed_PI is None or bool(allowed_PI[i].any())]
    for places in batches([prompts[i] for i in asked], batch):
        rows = [asked[place] for place in places]
        cache = PromptCache(model, [prompts[i] for i in rows], trie.longest, spare=4 * (k + 1))
        seed_B = torch.tensor([seeds[i] for i in rows], device=model.device)
        open_BE = None if allowed_PI is None else trie.reach(allowed_PI[rows].to(model.device).float()) > 0
        made |= zip(rows, _draw(cache, trie, k, seed_B, open_BE), strict=True)
    return [made[i] for i in range(len(prompts))]


def _draw(cache: PromptCache, trie: Trie, k: int, seed_B: Tensor, open_BE: Tensor | None) -> list[Sample]:
    root_B1 = gumbel(seed_B, torch.full_like(seed_B, -1))[:, None]
    beams, logits_BNV = Beams.start(trie, root_B1, logprob=root_B1 * 0), cache.logits_B1V
    while logits_BNV is not None:
        beams = _extend(beams, logits_BNV, trie, k + 1, seed_B, open_BE)
        logits_BNV = read(cache, beams, trie)
    order_BW = beams.score_BW.argsort(dim=1, descending=True, stable=True)
    columns = [x.gather(1, order_BW).tolist() for x in (beams.score_BW, beams.next_BW, beams.more["logprob"])]
    samples = []
    for row in zip(*columns, strict=True):
        found = [one for one in zip(*row, strict=True) if one[0] > -torch.inf]
        titles = [Drawn(~at, logprob) for _, at, logprob in found[:k]]
        samples.append(Sample(titles, found[k][0] if len(found) > k else -torch.inf))
    return samples


def _extend(beams: Beams, logits_BNV: Tensor, trie: Trie, width: int, seed_B: Tensor, open_BE: Tensor | None) -> Beams:
    """Return the ``width`` children and finished beams with the most perturbed log-probability, live ones first."""
    N, edges = logits_BNV.shape[1], edges_of(beams, logits_BNV, trie, open_BE)
    logit_E, beam_E = edges.logit_E.double(), edges.beam_E
    step_E = logit_E - logsumexp_by(logit_E, beam_E, edges.count_N)[beam_E]
    logprob_E = beams.more["logprob"][:, :N].flatten()[beam_E] + step_E
    noise_E = gumbel(seed_B[edges.prompt_E], edges.edge_E)
    noisy_E = _below(logprob_E + noise_E, beam_E, beams.score_BW[:, :N].flatten())
    return follow(beams, edges, noisy_E, trie, width, logprob=logprob_E)


def _below(noisy_E: Tensor, owner_E: Tensor, most_N: Tensor) -> Tensor:
    """Return the perturbed values of edges, shifted so that the largest of each owner is ``most``.

    v = G - g + log(1 - e^(g - Z)) and G_i = G - max(0, v) - log1p(e^(-|v|)); v of the largest is -inf, so it keeps G.
    """
    largest_N = noisy_E.new_full(most_N.shape, -torch.inf).scatter_reduce(0, owner_E, noisy_E, "amax")
    v_E = most_N[owner_E] - noisy_E + torch.log1p(-(noisy_E - largest_N[owner_E]).exp())
    return most_N[owner_E] - v_E.clamp(min=0) - torch.log1p((-v_E.abs()).exp())


def gumbel(seed_E: Tensor, edge_E: Tensor) -> Tensor:
    """Return standard Gumbel noise of each (seed, edge), float64: a hash of both, the same on every device."""
    bits_E = _mixed(_mixed(seed_E) ^ (edge_E + 1))
    uniform_E = ((bits_E >> 11) & ((1 << 53) - 1)).double().add(0.5) * 2.0**-53
    return -(-uniform_E.log()).log()


def _mixed(x: Tensor) -> Tensor:
    """Return the bits of splitmix64's finish, in int64 that wraps around."""

    def shifted(x: Tensor, n: int) -> Tensor:
        return (x >> n) & ((1 << (64 - n)) - 1)

    x = x + -7046029254386353131
    x = (x ^ shifted(x, 30)) * -4658895280553007687
    x = (x ^ shifted(x, 27)) * -7723592293110705685
    return x ^ shifted(x, 31)
