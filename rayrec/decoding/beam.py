"""Beam search that can only write catalogue titles.

The beams of a prompt share one row and one cache (see ``packed``). A step gathers the candidates of each beam from its
trie node, never from the vocabulary. A beam whose title is unique stops: it keeps its place with the score so far,
which is an upper bound; when the search ends, the scores of stopped beams are completed exactly. Where probabilities
are normalised over the tokens that the trie allows, those behind that place have probability 1, and nothing is left to
complete.
Shapes: B prompts, W beams, N of them in a step, C edges of these, S steps, V vocabulary, E edges of the trie.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rayrec.decoding.packed import PromptCache, batches, together
from rayrec.decoding.steps import Beams, Edges, follow, search
from rayrec.decoding.tails import complete, log_titles, tails
from rayrec.decoding.trie import Trie

#: Tokens over which probabilities are normalised: the vocabulary, or those that the catalogue allows.
Normalise = Literal["vocabulary", "catalogue"]


class Found(NamedTuple):
    """A title that a search found."""

    item: int
    score: float
    kept: float
    """Its log-probability over the vocabulary less that over the catalogue, in nats, at most 0: the log of what the
    vocabulary's softmax leaves to titles, summed over its tokens. 0 unless it was measured."""


class Measured(NamedTuple):
    """The answers to a prompt."""

    found: list[Found]
    """Best first."""
    target: float | None
    """The score of the title that was asked for, wherever it stands; None where none was."""


class _Rule(NamedTuple):
    """Settings of a search that every step reads."""

    width: int
    best: int
    catalogue: bool
    """Whether probabilities are over the catalogue."""
    measures: bool
    """Whether ``kept`` is computed."""


@dataclass(frozen=True)
class Prior:
    """A recommender's log-probability of every item after each prompt, [prompts, I], for D3 (Bao et al. 2024).

    A beam scores ``alpha`` times its log-probability plus 1 - ``alpha`` times the log of the summed probability of all
    items below its node. An item ends with alpha · log P(title + EOS | prompt) + (1 - alpha) · log p(item).
    """

    logprob_PI: Tensor
    alpha: float


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
    normalise: Normalise = "vocabulary",
) -> list[list[tuple[int, float]]]:
    """Return the best ``width`` items of each prompt, best first, with log P(title + EOS | prompt) in nats.

    Items are distinct, ties are in the order of items. Probabilities are over the full vocabulary, or where
    ``normalise`` is `catalogue` over the tokens that continue some title, so that those of all titles sum to 1. A width
    of the catalogue's size ranks exhaustively. ``return_best`` cuts the lists and saves the work on titles that cannot
    enter them. ``batch`` prompts are computed together, by default 16 on a CPU, where padding costs most, and 64
    elsewhere; it changes rounding only. A ``prior`` changes the scores as its class describes. ``allowed_PI`` (bool,
    [prompts, I]) names the items that each list may hold, by default all; it changes no probability.

    Raises:
        ValueError: a width below 1, or a model or prompt that the packed pass cannot compute exactly.
    """
    rule = _Rule(width, width if return_best is None else return_best, normalise == "catalogue", False)
    found = _search_all(model, prompts, trie, rule, batch, prior, allowed_PI)
    return [[(one.item, one.score) for one in some] for some, _ in found]


def measured_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    trie: Trie,
    width: int,
    *,
    prior: Prior | None = None,
    normalise: Normalise = "vocabulary",
    targets: list[int] | None = None,
) -> list[Measured]:
    """Return what :func:`beam_search` finds, with what is kept for each title, and the scores of ``targets``.

    ``targets`` names an item for each prompt, or -1. A target that is not in a full list and scores more than its last
    title was lost by the search.
    """
    rule = _Rule(width, width, normalise == "catalogue", True)
    return _search_all(model, prompts, trie, rule, None, prior, None, targets)


@torch.inference_mode()
def _search_all(
    model: PreTrainedModel,
    prompts: list[list[int]],
    trie: Trie,
    rule: _Rule,
    batch: int | None,
    prior: Prior | None,
    allowed_PI: Tensor | None,
    targets: list[int] | None = None,
) -> list[Measured]:
    batch = together(model.device.type) if batch is None else batch
    if min(rule.width, rule.best, batch) < 1:
        raise ValueError(f"width {rule.width}, return_best {rule.best} and batch {batch} must be at least 1.")
    trie, made = trie.to(model.device), dict[int, Measured]()
    for rows in batches(prompts, batch):
        cache = PromptCache(model, [prompts[i] for i in rows], trie.longest, spare=4 * rule.width)
        edges = _EdgePrior(prior, trie, rows) if prior else None
        open_BE = None if allowed_PI is None else trie.reach(allowed_PI[rows].to(model.device).float()) > 0
        found = _search(cache, trie, rule, edges, open_BE)
        scores = [None] * len(rows)
        if targets is not None:
            scores = _scores(cache, trie, rule, edges, [targets[i] for i in rows])
        made |= {i: Measured(one[: rule.best], score) for i, one, score in zip(rows, found, scores, strict=True)}
    return [made[i] for i in range(len(prompts))]


def _scores(
    cache: PromptCache, trie: Trie, rule: _Rule, prior: _EdgePrior | None, items: list[int]
) -> list[float | None]:
    """Return the score of an item of each prompt, as the search would have it; None for -1."""
    item_B = torch.tensor(items, device=cache.lengths.device)
    score_B = log_titles(cache, trie, item_B, rule.catalogue)
    if prior:
        score_B = prior.alpha * score_B + prior.item_BI.gather(1, item_B.clamp(min=0)[:, None])[:, 0]
    return [None if item < 0 else score for item, score in zip(items, score_B.tolist(), strict=True)]


class _EdgePrior:
    """The prior of the prompts ``rows`` by edge of the trie: its part of the score of a beam that takes the edge."""

    def __init__(self, prior: Prior, trie: Trie, rows: list[int]):
        prob_BI = prior.logprob_PI[rows].double().exp().to(trie.next.device)
        prob_BE = trie.reach(prob_BI).clamp(min=torch.finfo(torch.float64).tiny, max=1.0)
        self.alpha = prior.alpha
        self.item_BI = ((1 - prior.alpha) * prior.logprob_PI[rows].double()).float().to(trie.next.device)
        self.score_BE = ((1 - prior.alpha) * prob_BE.log()).float()


def _search(
    cache: PromptCache, trie: Trie, rule: _Rule, prior: _EdgePrior | None, open_BE: Tensor | None
) -> list[list[Found]]:
    none_B1 = torch.zeros_like(cache.lengths)[:, None].float()
    more = {"prior": none_B1} if prior else {}
    beams = Beams.start(none_B1, **more, **({"kept": none_B1} if rule.measures else {}))
    beams = search(cache, beams, trie, rule.width, partial(_extend, trie=trie, rule=rule, prior=prior, open_BE=open_BE))
    if not rule.catalogue:
        complete(cache, beams, trie, rule.best, prior.alpha if prior else 1.0)
    elif rule.measures:
        beams.more["kept"] += tails(cache, beams, trie, torch.ones_like(beams.next_BW, dtype=torch.bool))
    kept_BW = beams.more["kept"] if rule.measures else torch.zeros_like(beams.score_BW)
    rows = zip(beams.next_BW.tolist(), beams.score_BW.tolist(), kept_BW.tolist(), strict=True)
    return [
        sorted(
            (Found(~n, s, kept) for n, s, kept in zip(*row, strict=True) if s > -torch.inf),
            key=lambda one: (-one.score, one.item),
        )
        for row in rows
    ]


def _extend(
    beams: Beams,
    edges: Edges,
    logits_BNV: Tensor,
    trie: Trie,
    rule: _Rule,
    prior: _EdgePrior | None,
    open_BE: Tensor | None,
) -> Beams:
    """Return the best ``rule.width`` of the live beams' children and the stopped beams, live ones first."""
    more_BC = dict[str, Tensor]()
    norm_BN, kept_BN = _norms(logits_BNV, edges, rule)
    logp_BC = (edges.logit_BC - edges.of_beams(norm_BN)).clamp(max=0)
    if rule.measures:
        more_BC["kept"] = edges.of_beams(beams.more["kept"]) + edges.of_beams(kept_BN)
    if prior:
        more_BC["prior"] = prior.score_BE.gather(1, edges.edge_BC)
        logp_BC = prior.alpha * logp_BC + more_BC["prior"] - edges.of_beams(beams.more["prior"])
    if open_BE is not None:
        logp_BC = logp_BC.masked_fill(~open_BE.gather(1, edges.edge_BC), -torch.inf)
    score_BC = (edges.of_beams(beams.score_BW) + logp_BC).clamp(max=0)
    return follow(beams, edges, score_BC, trie, rule.width, **more_BC)


def _norms(logits_BNV: Tensor, edges: Edges, rule: _Rule) -> tuple[Tensor, Tensor]:
    """Return by which each of the N beams normalises its logits, and the log of what is kept for titles, 0 if it is
    not measured."""
    measured = rule.catalogue or rule.measures
    titles_BN = edges.logsumexp(edges.logit_BC) if measured else None
    words_BN = None if rule.catalogue and not rule.measures else logits_BNV.logsumexp(-1)
    norm_BN = titles_BN if rule.catalogue else words_BN
    assert norm_BN is not None
    if titles_BN is None or words_BN is None:
        return norm_BN, torch.zeros_like(norm_BN)
    return norm_BN, (titles_BN - words_BN).clamp(max=0)
