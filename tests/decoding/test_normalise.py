"""Probabilities over the catalogue: by their definition, in searches and in scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rayrec.decoding import Prior, Trie, beam_search, measured_search, score_answers, titles_of
from rayrec.models.logprobs import PackedLM
from tests.decoding.small_models import EOS, PROMPTS, VOCAB, random_model, teacher_forced
from tests.decoding.test_beam import random_titles


def over_titles(model, prompt: list[int], title: list[int], titles: list[list[int]]) -> tuple[float, float]:
    """log π_C(title) and Σ_t log m_t by the definition, from one plain pass and a walk over all titles."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + title])).logits[0].float()
    logp = kept = 0.0
    for depth, token in enumerate(title):
        legal = sorted({t[depth] for t in titles if t[:depth] == title[:depth]})
        row = logits[len(prompt) - 1 + depth]
        logp += float(row[token] - row[legal].logsumexp(0))
        kept += float(row[legal].logsumexp(0) - row.logsumexp(0))
    return logp, kept


def test_legal_tokens_are_the_edges_of_each_place() -> None:
    titles = [[5, 6, 7, 0], [5, 6, 0], [4, 0]]
    trie = Trie.build(titles)
    assert [trie.nodes[a:b].tolist() for a, b in itertools.pairwise(trie.offsets.tolist())] == [
        [0, 1, 2, -1],
        [0, 1, 2],
        [0, -1],
    ]
    legal = trie.legal(torch.tensor([0, 0, 0, 0, 2, -1]), torch.tensor([0, 1, 2, 3, 0, 7]))
    assert legal.node_N.tolist() == [0, 1, 2, -1, 0, -1]
    assert [legal.token_E[a:b].tolist() for a, b in itertools.pairwise(legal.ends)] == [
        [4, 5],
        [6],
        [0, 7],
        [],
        [4, 5],
        [],
    ]
    part = legal.cut(2, 5)
    assert (part.owner_E.tolist(), part.token_E.tolist(), part.ends) == ([0, 0, 2, 2], [0, 7, 4, 5], [0, 2, 2, 4])
    value_E = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, -1.0, -2.0])
    assert legal.largest(value_E, 2).tolist() == [1, 2, 4, 0, -2, 0]
    assert legal.largest(value_E, 1).tolist() == [3, 2, 5, 0, -1, 0]
    assert legal.sum(value_E).tolist() == [4, 2, 9, 0, -3, 0]
    assert legal.logsumexp(value_E)[2].item() == pytest.approx(math.log(math.e**5 + math.e**4))
    empty = trie.legal(torch.tensor([-1]), torch.tensor([0]))
    assert empty.largest(value_E[:0], 3).tolist() == empty.logsumexp(value_E[:0]).tolist() == [0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_all_titles_together_have_probability_one(dtype: torch.dtype, tolerance: float) -> None:
    titles = random_titles(300)
    trie = Trie.build(titles)
    prefixes = sorted({tuple(t[:depth]) for t in titles for depth in range(len(t))})
    logits_PV = 30 * torch.randn(len(prefixes), VOCAB, dtype=dtype, generator=torch.Generator().manual_seed(0))
    z = dict(zip(prefixes, logits_PV, strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for item, title in enumerate(titles):
        places = torch.arange(len(title))
        legal = trie.legal(torch.full_like(places, item), places)
        logits = torch.stack([z[tuple(title[:depth])] for depth in places.tolist()])
        norm = legal.logsumexp(logits[legal.owner_E, legal.token_E])
        logp = (logits[places, torch.tensor(title)] - norm).where(legal.count_N > 0, 0.0)
        kept = (norm - logits.logsumexp(-1)).where(
            legal.count_N > 0, logits.log_softmax(-1)[places, torch.tensor(title)]
        )
        plain = logits.log_softmax(-1)[places, torch.tensor(title)]
        torch.testing.assert_close(plain.sum() - kept.sum(), logp.sum(), rtol=tolerance, atol=30 * tolerance)
        total += logp.sum().double().exp()
    assert total.item() == pytest.approx(1, abs=tolerance)


def test_where_every_string_is_a_title_both_are_one() -> None:
    model, titles = random_model("llama"), [list(pair) for pair in itertools.product(range(VOCAB), repeat=2)]
    trie = Trie.build(titles)
    words, names = (beam_search(model, PROMPTS[:1], trie, 20, normalise=how)[0] for how in ("vocabulary", "catalogue"))
    assert [item for item, _ in words] == [item for item, _ in names]
    assert [score for _, score in words] == pytest.approx([score for _, score in names], abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("width", [3, 40])
def test_searches_and_scores_over_the_catalogue_are_by_the_definition(name: str, width: int) -> None:
    model, titles = random_model(name), random_titles(40)
    trie = Trie.build(titles)
    plain = beam_search(model, PROMPTS, trie, width, normalise="catalogue")
    found = measured_search(model, PROMPTS, trie, width, normalise="catalogue")
    scored = score_answers(PackedLM(model), [(p, titles) for p in PROMPTS], trie, titles_of(titles), "catalogue")
    for prompt, one, (list_, _), exact in zip(PROMPTS, plain, found, scored, strict=True):
        wanted = [over_titles(model, prompt, title, titles) for title in titles]
        assert [(item, score) for item, score, _ in list_] == one
        assert [score for _, score in one] == pytest.approx([wanted[item][0] for item, _ in one], abs=1e-4)
        assert [kept for *_, kept in list_] == pytest.approx([wanted[item][1] for item, _ in one], abs=1e-4)
        assert [x for pair in exact for x in pair] == pytest.approx([x for pair in wanted for x in pair], abs=1e-4)
        assert math.fsum(math.exp(logp) for logp, _ in exact) == pytest.approx(1, abs=1e-5)
        if width == 40:
            assert [item for item, _ in one] == sorted(range(40), key=lambda i: -wanted[i][0])


def test_what_is_kept_over_the_vocabulary_is_the_same_and_scores_do_not_move() -> None:
    model, titles = random_model("qwen2"), random_titles(40)
    trie = Trie.build(titles)
    plain = beam_search(model, PROMPTS, trie, 40)
    found = measured_search(model, PROMPTS, trie, 40)
    for prompt, one, (list_, target) in zip(PROMPTS, plain, found, strict=True):
        assert target is None and [(item, score) for item, score, _ in list_] == one
        wanted = [over_titles(model, prompt, title, titles)[1] for title in titles]
        assert [kept for *_, kept in list_] == pytest.approx([wanted[item] for item, *_ in list_], abs=1e-4)
        # Weighed by π_C, what is kept for all titles is the probability that the policy leaves to titles.
        mass = math.fsum(math.exp(score) for _, score, _ in list_)
        weights = [math.exp(score - kept) for _, score, kept in list_]
        shares = [w * math.exp(kept) for w, (*_, kept) in zip(weights, list_, strict=True)]
        assert math.fsum(shares) / math.fsum(weights) == pytest.approx(mass, rel=1e-4)


@pytest.mark.parametrize("how", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("alpha", [None, 0.4])
def test_a_target_has_the_score_that_an_exhaustive_search_gives_it(how: str, alpha: float | None) -> None:
    model, titles = random_model("llama"), random_titles(40)
    trie, prior = Trie.build(titles), None
    if alpha is not None:
        logit_PI = torch.randn(len(PROMPTS), 40, generator=torch.Generator().manual_seed(1))
        prior = Prior(logit_PI.log_softmax(-1), alpha)
    every = measured_search(model, PROMPTS, trie, 40, prior=prior, normalise=how)  # pyright: ignore
    for place in (0, 7, 39):
        targets = [one.found[place].item for one in every]
        targets[1] = -1
        some = measured_search(model, PROMPTS, trie, 2, prior=prior, normalise=how, targets=targets)  # pyright: ignore
        wanted = [one.found[place].score for one in every]
        assert some[1].target is None
        assert [s.target for s in some[:1] + some[2:]] == pytest.approx(wanted[:1] + wanted[2:], abs=1e-4)


def test_an_answer_that_is_no_title_has_no_probability_over_the_catalogue() -> None:
    model, titles = random_model("llama"), random_titles(12)
    other, trie, items = [9, 9, EOS], Trie.build(titles), titles_of(titles)
    for how, wanted in (("catalogue", -math.inf), ("vocabulary", teacher_forced(model, PROMPTS[0], other))):
        ((known, unknown),) = score_answers(PackedLM(model), [(PROMPTS[0], [titles[0], other])], trie, items, how)  # pyright: ignore
        assert unknown == (pytest.approx(wanted, abs=1e-4), None)
        assert known[1] is not None and known[1] <= 0
