"""Gumbel top-k: distinct titles, their distribution, and estimates from a sample, against exact probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from rayrec.decoding import Trie, beam_search, sample_titles
from rayrec.decoding.gumbel import _below, gumbel
from tests.decoding.small_models import PROMPTS, random_model
from tests.decoding.test_beam import random_titles

DRAWS, TITLES = 1200, 30


def test_the_noise_is_standard_gumbel_and_a_function_of_seed_and_edge() -> None:
    noise = gumbel(torch.arange(20_000), torch.full((20_000,), 7))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.05)
    assert float((noise <= 1.0).double().mean()) == pytest.approx(math.exp(-math.exp(-1.0)), abs=0.02)
    assert len(noise.unique()) == 20_000
    other = gumbel(torch.arange(20_000), torch.full((20_000,), 8))
    assert abs(float(torch.corrcoef(torch.stack([noise, other]))[0, 1])) < 0.03
    assert torch.equal(gumbel(torch.tensor([3, 2**62]), torch.tensor([7, 7]))[:1], noise[3:4])


def test_the_largest_child_keeps_its_parents_value_to_the_bit() -> None:
    noisy, most = (torch.tensor([x], dtype=torch.float64) for x in ([0.3, 2.0, -40.0, 1.0], [-5.0, 3.25]))
    (found,) = _below(noisy, torch.tensor([[0, 0, 0, 1]]), most)
    assert found[[1, 3]].tolist() == [-5.0, 3.25]
    assert bool((found[[0, 2]] < -5).all()) and found.isfinite().all() and found[0] > found[2]


def test_a_sample_as_large_as_the_catalogue_is_the_catalogue() -> None:
    model, titles = random_model("llama"), random_titles(TITLES)
    exact = beam_search(model, PROMPTS, Trie.build(titles), TITLES, normalise="catalogue")
    for k in (TITLES, TITLES + 5):
        for sample, known in zip(
            sample_titles(model, PROMPTS, Trie.build(titles), k, [1, 2, 3, 4]), exact, strict=True
        ):
            assert sample.threshold == -math.inf
            assert {t.item: t.logprob for t in sample.titles} == pytest.approx(dict(known), abs=1e-4)
            assert math.fsum(math.exp(t.logprob) for t in sample.titles) == pytest.approx(1, abs=1e-5)
            assert {sample.inclusion(title) for title in sample.titles} == {1.0}


def test_a_draw_follows_from_its_seed_and_not_from_its_neighbours() -> None:
    model, trie = random_model("qwen2"), Trie.build(random_titles(TITLES))
    together = sample_titles(model, PROMPTS, trie, 5, [11, 12, 13, 14])
    apart = [sample_titles(model, [p], trie, 5, [s])[0] for p, s in zip(PROMPTS, (11, 12, 13, 14), strict=True)]
    small = sample_titles(model, PROMPTS, trie, 5, [11, 12, 13, 14], batch=2)
    for one, two, three in zip(together, apart, small, strict=True):
        items = [title.item for title in one.titles]
        assert len({*items}) == 5
        assert items == [title.item for title in two.titles] == [title.item for title in three.titles]
        assert one.threshold == pytest.approx(two.threshold, abs=1e-4)
    assert sample_titles(model, PROMPTS[:1], trie, 5, [99])[0] != together[0]
    with pytest.raises(ValueError, match="k 0"):
        sample_titles(model, PROMPTS, trie, 0, [1] * 4)


def test_first_draws_follow_the_policy_and_weighted_sums_are_unbiased() -> None:
    model, titles = random_model("gpt2"), random_titles(TITLES)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)  # pyright: ignore: probabilities that are not all in one title
    trie, prompt, k = Trie.build(titles), [1, 5, 9], 6
    prob = dict.fromkeys(range(TITLES), 0.0)
    prob |= {i: math.exp(s) for i, s in beam_search(model, [prompt], trie, TITLES, normalise="catalogue")[0]}
    assert max(prob.values()) < 0.7
    samples = sample_titles(model, [prompt] * DRAWS, trie, k, [*range(DRAWS)])
    first = [sample.titles[0].item for sample in samples]
    often = [i for i in prob if prob[i] * DRAWS >= 5]
    rest = DRAWS * (1 - sum(prob[i] for i in often))
    chi = sum((first.count(i) - DRAWS * prob[i]) ** 2 / (DRAWS * prob[i]) for i in often)
    chi += (DRAWS - sum(map(first.count, often)) - rest) ** 2 / rest if rest >= 5 else 0
    assert chi < len(often) + 4 * math.sqrt(2 * len(often)) + 3
    # The mean of f over titles, by the titles of a sample and the probabilities to be in it.
    value = {i: math.sin(i) for i in prob}
    exact = sum(prob[i] * value[i] for i in prob)
    weights = [[(t.item, math.exp(t.logprob) / s.inclusion(t)) for t in s.titles] for s in samples]
    estimates = torch.tensor([sum(w * value[i] for i, w in one) for one in weights])
    masses = torch.tensor([sum(w for _, w in one) for one in weights])
    for found, wanted in ((estimates, exact), (masses, 1.0)):
        assert float(found.mean()) == pytest.approx(wanted, abs=4 * float(found.std()) / math.sqrt(DRAWS) + 1e-3)


def test_a_draw_from_allowed_titles_is_one_from_a_catalogue_of_these_alone() -> None:
    model, titles = random_model("llama"), random_titles(TITLES)
    allowed_PI = torch.ones(len(PROMPTS), TITLES, dtype=torch.bool)
    allowed_PI[0, ::3] = False
    allowed_PI[1, :] = False
    allowed_PI[2, 4:] = False
    trie, seeds = Trie.build(titles), [1, 2, 3, 4]
    whole = sample_titles(model, PROMPTS, trie, TITLES, seeds, allowed_PI=allowed_PI)
    for row, sample in enumerate(whole):
        items = allowed_PI[row].nonzero()[:, 0].tolist()
        assert sample.threshold == -math.inf and {title.item for title in sample.titles} == {*items}
        if items:
            alone = beam_search(
                model, PROMPTS[row : row + 1], Trie.build([titles[i] for i in items]), TITLES, normalise="catalogue"
            )[0]
            assert {t.item: t.logprob for t in sample.titles} == pytest.approx(
                {items[i]: logprob for i, logprob in alone}, abs=1e-4
            )
    some = sample_titles(model, PROMPTS, trie, 3, seeds, allowed_PI=allowed_PI)
    for sample, known in zip(some, whole, strict=True):
        assert [t.item for t in sample.titles] == [t.item for t in known.titles[:3]]
    free = sample_titles(model, PROMPTS, trie, 3, seeds)[3]
    assert [title.item for title in some[3].titles] == [title.item for title in free.titles]
    assert some[3].threshold == pytest.approx(free.threshold, abs=1e-4)
