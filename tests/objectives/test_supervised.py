"""Supervised losses over the catalogue: identities, gradients by their closed forms, the temperature, and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from rayrec.decoding import Legal, Trie
from rayrec.objectives import SFT_LOSSES, Choices, SftLoss
from rayrec.objectives.bear import Bear
from rayrec.objectives.flower import Flower
from rayrec.objectives.msl import Msl
from rayrec.objectives.settings import SupervisedConfig, make_sft_loss, resolve_sft

V = 8
#: Titles of two and three tokens; 0 ends one. The tokens 5 to 7 continue no title.
TITLES = [[1, 2, 0], [1, 3, 0], [1, 2, 4, 0], [2, 0], [3, 4, 0], [3, 0], [4, 1, 2, 0]]


def places(trie: Trie, title: int) -> tuple[Legal, torch.Tensor]:
    """What is legal at each token of a title, and its tokens."""
    tokens = trie.answers[trie.offsets[title] : trie.offsets[title + 1]]
    return trie.legal(torch.full_like(tokens, title), torch.arange(len(tokens))), tokens


def choices_of(z_NV: torch.Tensor, legal: Legal, tokens: torch.Tensor, **more: torch.Tensor) -> Choices:
    z_N = z_NV.gather(1, tokens[:, None])[:, 0]
    return Choices(z_N, z_NV[legal.owner_E, legal.token_E], legal, z_NV.logsumexp(-1), **more)


def logits(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (4 * torch.randn(n, V, dtype=torch.float64, generator=torch.Generator().manual_seed(n))).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("title", range(len(TITLES)))
def test_msl_and_bear_by_hand(title: int, dtype: torch.dtype, tolerance: float) -> None:
    legal, tokens = places(Trie.build(TITLES), title)
    z_NV = logits(len(tokens), dtype)
    msl = Msl()(choices_of(z_NV, legal, tokens), 2.0)
    bear = Bear(beams=2, lam=0.7, xi=1.3)(choices_of(z_NV, legal, tokens), 2.0)
    for depth, token in enumerate(tokens.tolist()):
        here = sorted({t[depth] for t in TITLES if t[:depth] == tokens[:depth].tolist()})
        wanted = [0.0, 0.0]
        if len(here) > 1:
            z = {v: float(z_NV[depth, v]) / 2 for v in here}
            norm = math.log(sum(math.exp(one) for one in z.values()))
            second = sorted(z.values())[-2]
            weight = 1 + 0.7 / (1 + math.exp(-(z[token] - second) / 1.3))
            wanted = [2 * (norm - z[token]), weight * (norm - z[token])]
        assert [msl[depth].item(), bear[depth].item()] == pytest.approx(wanted, rel=tolerance, abs=tolerance)


def test_bear_without_weight_is_msl_and_msl_where_every_string_is_a_title_is_sft() -> None:
    trie = Trie.build([[a, b] for a in range(V) for b in range(V)])
    legal, tokens = places(trie, 19)
    z_NV = logits(2)
    choices = choices_of(z_NV, legal, tokens)
    torch.testing.assert_close(Bear(lam=0.0)(choices, 1.0), Msl()(choices, 1.0), rtol=1e-12, atol=1e-12)
    sft = torch.nn.functional.cross_entropy(z_NV, tokens, reduction="none")
    torch.testing.assert_close(Msl()(choices, 1.0), sft, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_the_closed_forms() -> None:
    """MSL's: the softmax less the target. BEAR's: that of -log p + λξ log σ((log p_(B) - log p)/ξ), p_(B) fixed."""
    legal, tokens = places(Trie.build(TITLES), 2)
    z_NV = logits(len(tokens)).requires_grad_()
    Msl()(choices_of(z_NV, legal, tokens), 1.5).sum().backward()
    wanted = torch.zeros_like(z_NV)
    for n, (a, b) in enumerate(zip(legal.ends, legal.ends[1:], strict=False)):
        if b - a > 1:
            own = legal.token_E[a:b]
            wanted[n, own] = (z_NV[n, own] / 1.5).softmax(0).detach()
            wanted[n, tokens[n]] -= 1
    torch.testing.assert_close(z_NV.grad, wanted, rtol=1e-12, atol=1e-12)

    bear, lam, xi = Bear(beams=2, lam=0.7, xi=1.3), 0.7, 1.3
    found = torch.autograd.grad(bear(choices_of(z_NV, legal, tokens), 1.0).sum(), z_NV)[0]
    choices = choices_of(z_NV, legal, tokens)
    logp_N = choices.logit_N - legal.logsumexp(choices.logit_E)
    fixed_N = (legal.largest(choices.logit_E, 2) - legal.logsumexp(choices.logit_E)).detach()
    form_N = -logp_N + lam * xi * torch.nn.functional.logsigmoid((fixed_N - logp_N) / xi)
    torch.testing.assert_close(
        found, torch.autograd.grad(form_N[choices.open_N].sum(), z_NV)[0], rtol=1e-10, atol=1e-10
    )


def test_flower_is_at_its_minimum_where_probabilities_are_shares_of_popularity() -> None:
    trie, popularity = Trie.build(TITLES), torch.tensor([5.0, 1, 2, 0, 8, 3, 4], dtype=torch.float64)
    reach_E = trie.reach(popularity[None])[0]
    owner_E = torch.repeat_interleave(trie.pointers.diff())
    share_E = reach_E / torch.zeros(len(trie.pointers) - 1).double().index_add(0, owner_E, reach_E)[owner_E]
    for title in (0, 2, 4, 6):
        legal, tokens = places(trie, title)
        q_E = share_E[legal.edge_E]
        own = [edge for edge, token in enumerate(legal.token_E.tolist()) if token == tokens[legal.owner_E[edge]]]
        assert q_E[own].log().sum().item() == pytest.approx(math.log(popularity[title] / popularity.sum()), abs=1e-12)
        z_NV = logits(len(tokens))
        z_NV[legal.owner_E, legal.token_E] = q_E.clamp(min=1e-300).log()
        z_NV.requires_grad_()
        loss_N = Flower(theta=1e-9)(choices_of(z_NV, legal, tokens, share_E=q_E), 1.0)
        assert loss_N.detach().abs().max().item() < 1e-6
        assert float(torch.autograd.grad(loss_N.sum(), z_NV)[0].abs().max()) < 1e-8
        moved = choices_of(logits(len(tokens)), legal, tokens, share_E=q_E)
        assert float(Flower(theta=1e-9)(moved, 1.0).sum()) > 0.1
    choices = choices_of(z_NV, legal, tokens, share_E=q_E)
    sft = torch.nn.functional.cross_entropy(z_NV, tokens, reduction="none")
    torch.testing.assert_close(Flower(theta=1.0)(choices, 1.0), sft, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, kind in SFT_LOSSES.items() if kind.reads_catalogue])
def test_far_logits_and_tokens_without_a_choice_are_harmless(name: str) -> None:
    trie = Trie.build(TITLES)
    legal, tokens = places(trie, 6)
    z_NV = (1e4 * logits(len(tokens), torch.float32)).requires_grad_()
    share_E = torch.full((len(legal.token_E),), 0.25)
    loss_N = SFT_LOSSES[name]()(choices_of(z_NV, legal, tokens, share_E=share_E), 1.0)
    (gradient,) = torch.autograd.grad(loss_N.sum(), z_NV)
    assert loss_N.isfinite().all() and gradient.isfinite().all()
    if not SFT_LOSSES[name].counts_all:
        assert (loss_N[1:] == 0).all() and (gradient[1:] == 0).all() and loss_N[0] > 0
    none = trie.legal(torch.tensor([-1]), torch.tensor([0]))  # padding
    loss_N = SFT_LOSSES[name]()(choices_of(logits(1, torch.float32), none, tokens[:1], share_E=share_E[:0]), 1.0)
    assert loss_N.isfinite().all()


def test_the_temperature_follows_the_first_tokens() -> None:
    msl = Msl(eta=0.25)
    c = math.log(0.25 * 40)
    assert msl.adapts and msl.start == 1.5
    found = (9 + math.sqrt(81 - 2 * c * 4)) / (2 * c)
    assert 1.5 < found < 5
    assert msl.following(2.0, 9.0, 4.0, 40) == pytest.approx(0.95 * 2 + 0.05 * found)
    assert msl.following(2.0, 0.1, 50.0, 40) == pytest.approx(0.95 * 2 + 0.05 * 1.5)  # no root, and the least
    assert msl.following(2.0, 1e3, 1.0, 40) == pytest.approx(0.95 * 2 + 0.05 * 5)
    with pytest.raises(ValueError, match=r"begin with 4 different tokens.*--sft-temperature 1"):
        msl.check_catalogue(4)
    fixed = Msl(temperature=4.5)
    fixed.check_catalogue(4)
    assert not fixed.adapts and fixed.start == 4.5


def test_settings_belong_to_their_loss() -> None:
    assert make_sft_loss(SupervisedConfig()) == SftLoss()
    assert make_sft_loss(SupervisedConfig(sft_loss="bear", sft_beams=5)) == Bear(beams=5)
    found = resolve_sft(SupervisedConfig(sft_loss="bear"))
    assert (found.sft_temperature, found.sft_beams, found.sft_lam, found.sft_xi) == (1.0, 10, 0.25, 2.75)
    for config, says in (
        (SupervisedConfig(sft_beams=5), "--sft-loss sft has no --sft-beams; it has no settings"),
        (SupervisedConfig(sft_loss="msl", sft_lam=1.0), "--sft-loss msl has no --sft-lam; it has --sft-temperature"),
        (SupervisedConfig(sft_loss="bear", sft_xi=0.0), "--sft-loss bear: Found xi = 0"),
    ):
        with pytest.raises(ValueError, match=says):
            make_sft_loss(config)
