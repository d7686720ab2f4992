"""Distinct titles of a policy, drawn without replacement: Gumbel top-k over the catalogue's trie (Kool et al. 2019).

Every title gets its log-probability over the catalogue plus Gumbel noise, and the k largest sums are the sample. The
noise of a beam is the largest of the noises below it, so a search that keeps the k + 1 largest finds them. The noise
follows from a seed, the example and the edge of the trie alone, so a draw does not depend on its neighbours. Where only
some titles are allowed, probabilities are over these alone, as in the trie that only they would make.
The score of a beam is its perturbed log π_C.
Shapes: B prompts, W beams, N of them in a step, C edges of these, E edges of the trie; all of it in float64.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayrec.decoding.packed import PromptCache, batches, together
from rayrec.decoding.steps import Beams, Edges, follow, search
from rayrec.decoding.trie import Trie


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
    extend = partial(_extend, trie=trie, width=k + 1, seed_B=seed_B)
    beams = search(cache, Beams.start(root_B1, logprob=root_B1 * 0), trie, k + 1, extend, open_BE)
    order_BW = beams.score_BW.argsort(dim=1, descending=True, stable=True)
    columns = [x.gather(1, order_BW).tolist() for x in (beams.score_BW, beams.next_BW, beams.more["logprob"])]
    samples = []
    for row in zip(*columns, strict=True):
        found = [one for one in zip(*row, strict=True) if one[0] > -torch.inf]
        titles = [Drawn(~at, logprob) for _, at, logprob in found[:k]]
        samples.append(Sample(titles, found[k][0] if len(found) > k else -torch.inf))
    return samples


def _extend(beams: Beams, edges: Edges, _: Tensor, trie: Trie, width: int, seed_B: Tensor) -> Beams:
    """Return the ``width`` children and finished beams with the most perturbed log-probability, live ones first."""
    logit_BC = edges.logit_BC.double()
    step_BC = logit_BC - edges.of_beams(edges.logsumexp(logit_BC))
    logprob_BC = edges.of_beams(beams.more["logprob"]) + step_BC
    noisy_BC = _below(logprob_BC + gumbel(seed_B[:, None], edges.edge_BC), edges.beam_BC, beams.score_BW)
    return follow(beams, edges, noisy_BC, trie, width, logprob=logprob_BC)


def _below(noisy_BC: Tensor, beam_BC: Tensor, most_BW: Tensor) -> Tensor:
    """Return the perturbed values of edges, shifted so that the largest of each beam is ``most``.

    v = G - g + log(1 - e^(g - Z)) and G_i = G - max(0, v) - log1p(e^(-|v|)); v of the largest is -inf, so it keeps G.
    """
    most_BC = most_BW.gather(1, beam_BC)
    largest_BW = torch.full_like(most_BW, -torch.inf).scatter_reduce(1, beam_BC, noisy_BC, "amax")
    v_BC = most_BC - noisy_BC + torch.log1p(-(noisy_BC - largest_BW.gather(1, beam_BC)).exp())
    return most_BC - v_BC.clamp(min=0) - torch.log1p((-v_BC.abs()).exp())


def gumbel(seed: Tensor, edge: Tensor) -> Tensor:
    """Return standard Gumbel noise of each (seed, edge), float64: a hash of both, the same on every device."""
    bits = _mixed(_mixed(seed) ^ (edge + 1))
    uniform = ((bits >> 11) & ((1 << 53) - 1)).double().add(0.5) * 2.0**-53
    return -(-uniform.log()).log()


def _mixed(x: Tensor) -> Tensor:
    """Return the bits of splitmix64's finish, in int64 that wraps around."""

    def shifted(x: Tensor, n: int) -> Tensor:
        return (x >> n) & ((1 << (64 - n)) - 1)

    x = x + -7046029254386353131
    x = (x ^ shifted(x, 30)) * -4658895280553007687
    x = (x ^ shifted(x, 27)) * -7723592293110705685
    return x ^ shifted(x, 31)
