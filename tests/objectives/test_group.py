"""Objectives over groups: advantages, values and gradients by hand, identities, and which rows pass the model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rayrec.driver import checks
from rayrec.methods import parse
from rayrec.objectives import OBJECTIVES, Group
from rayrec.objectives.group import advantages, ranked_rewards
from rayrec.objectives.gspo import Gspo
from rayrec.objectives.rere import Rere
from rayrec.objectives.settings import LossConfig, resolve

GROUPS = [name for name, kind in OBJECTIVES.items() if kind.shape is Group]


def group(hits: list[int | None], G: int = 16, dtype: torch.dtype = torch.float64, seed: int = 0) -> Group:
    """Groups of G answers of 3 to 8 tokens, the target at the place that ``hits`` says, as the phase starts."""
    g = torch.Generator().manual_seed(seed)
    logprob_BG = -(2 + 10 * torch.rand(len(hits), G, generator=g, dtype=torch.float64)).to(dtype)
    hit_BG = torch.zeros(len(hits), G, dtype=torch.bool)
    for b, place in enumerate(hits):
        if place is not None:
            hit_BG[b, place] = True
    length_BG = torch.randint(3, 9, (len(hits), G), generator=g).to(dtype)
    return Group(logprob_BG, torch.ones_like(hit_BG), hit_BG, length_BG, logprob_BG.clone())


def gradient(objective: Any, of: Group) -> torch.Tensor:
    """∂loss/∂log π of every answer."""
    leaf = of.logprob_BG.clone().requires_grad_()
    objective(replace(of, logprob_BG=leaf)).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_advantages_of_ranked_rewards() -> None:
    of = group([0, 5, None])
    reward_BG = ranked_rewards(of)
    gains = [1 / math.log2(k + 1) for k in range(1, 17)]
    assert reward_BG[0].tolist() == pytest.approx([1, *(-c / sum(gains) for c in gains[1:])], rel=1e-12)
    assert reward_BG[1, 5] == 1 and reward_BG[1, 0].item() == pytest.approx(-gains[0] / sum(gains), rel=1e-12)
    assert (reward_BG[2] == 0).all()
    advantage_BG = advantages(reward_BG, of.mask_BG)
    assert (advantage_BG[2] == 0).all()
    torch.testing.assert_close(advantage_BG.sum(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    first = advantage_BG[0].tolist()
    assert (first[0], first[1], first[-1]) == pytest.approx((3.7407, -0.4292, -0.1901), abs=5e-5)
    assert first[0] == pytest.approx((reward_BG[0, 0] - reward_BG[0].mean()).item() / (reward_BG[0].std() + 1e-4))


@pytest.mark.parametrize("G", [2, 5, 16])
def test_binary_rewards_are_the_area_under_the_curve(G: int) -> None:
    of = group([G // 2, 0], G)
    advantage_BG = advantages(of.hit_BG.double(), of.mask_BG)
    right, wrong = (G - 1) / math.sqrt(G), -1 / math.sqrt(G)
    wanted_BG = torch.full((2, G), wrong, dtype=torch.float64).masked_fill(of.hit_BG, right)
    torch.testing.assert_close(advantage_BG, wanted_BG, rtol=1e-3, atol=0)  # but for the 1e-4 beside the deviation
    # Σ_k A_k l_k = (1/√G) Σ_k (l_w - l_k): the target against each of the others.
    l_BG = of.logprob_BG
    apart_B = (l_BG[of.hit_BG][:, None] - l_BG).sum(1) / math.sqrt(G)
    torch.testing.assert_close((wanted_BG * l_BG).sum(1), apart_B, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_at_the_old_policy_both_are_reinforce(dtype: torch.dtype, tolerance: float) -> None:
    of = group([0, 3, 15, None], dtype=dtype)
    advantage_BG = advantages(ranked_rewards(of), of.mask_BG)
    wanted_BG = -advantage_BG / of.length_BG / 16
    for objective in (Rere(), Gspo()):
        torch.testing.assert_close(gradient(objective, of), wanted_BG, rtol=tolerance, atol=tolerance)
        loss_B = objective(of)
        torch.testing.assert_close(loss_B, torch.zeros_like(loss_B), rtol=0, atol=max(tolerance, 1e-6 * tolerance))
    assert (gradient(Rere(), of)[3] == 0).all()


def test_one_ratio_of_the_tokens_has_the_gradient_of_each_of_them() -> None:
    """(1/|y|) Σ_t A exp(log π_t - sg log π_t), written token by token."""
    g = torch.Generator().manual_seed(3)
    token_GT = -torch.rand(4, 6, generator=g, dtype=torch.float64).requires_grad_()
    length_G = torch.tensor([6, 2, 4, 3])
    there_GT = torch.arange(6) < length_G[:, None]
    hit_1G = torch.tensor([[False, True, False, False]])
    of = Group((token_GT * there_GT).sum(1)[None], torch.ones_like(hit_1G), hit_1G, length_G[None].double())
    advantage_G = advantages(ranked_rewards(of), of.mask_BG)[0]
    (found,) = torch.autograd.grad(Rere()(of).sum(), token_GT)
    ratio_GT = (token_GT - token_GT.detach()).exp() * there_GT
    (wanted,) = torch.autograd.grad(-(advantage_G * ratio_GT.sum(1) / length_G).mean(), token_GT)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


def test_gspo_by_hand() -> None:
    """Two answers of 2 and 4 tokens, the target first: A is about ±1/√2."""
    hit_BG = torch.tensor([[True, False]])
    for moved, low, high in ((0.1, 0.05, 0.02), (-0.1, 0.05, 0.02), (0.01, 0.05, 0.02)):
        of = Group(
            torch.tensor([[-4.0 + 2 * moved, -8.0 + 4 * moved]], dtype=torch.float64),
            torch.ones_like(hit_BG),
            hit_BG,
            torch.tensor([[2.0, 4.0]]).double(),
            torch.tensor([[-4.0, -8.0]]).double(),
        )
        miss = 1 / math.log2(3) / (1 + 1 / math.log2(3))
        spread = (1 + miss) / math.sqrt(2)
        a = (1 + miss) / 2 / (spread + 1e-4)
        ratio = math.exp(moved)
        kept = min(max(ratio, 1 - low), 1 + high)
        wanted = -(min(ratio * a, kept * a) + min(-ratio * a, -kept * a)) / 2
        assert Gspo(low, high)(of).item() == pytest.approx(wanted, rel=1e-12)
        slopes = [a / 2 if ratio * a <= kept * a else 0.0, -a / 4 if ratio * -a <= kept * -a else 0.0]
        assert gradient(Gspo(low, high), of)[0].tolist() == pytest.approx([-s * ratio / 2 for s in slopes], rel=1e-12)


@pytest.mark.parametrize("name", GROUPS)
def test_absent_answers_and_far_ratios(name: str) -> None:
    short = group([1, 2], 4)
    wide = {field: torch.cat([getattr(short, field), torch.full((2, 3), torch.nan)], 1) for field in ("logprob_BG",)}
    wide["old_BG"] = wide["logprob_BG"].clone()
    wide["mask_BG"], wide["hit_BG"] = (
        torch.cat([m, torch.zeros(2, 3).bool()], 1) for m in (short.mask_BG, short.hit_BG)
    )
    wide["length_BG"] = torch.cat([short.length_BG, torch.zeros(2, 3).double()], 1)
    found = gradient(OBJECTIVES[name](), Group(**wide))
    assert (found[:, 4:] == 0).all()
    torch.testing.assert_close(found[:, :4], gradient(OBJECTIVES[name](), short), rtol=1e-12, atol=1e-12)
    for delta in (1e3, -1e3):
        far = replace(short, logprob_BG=(short.logprob_BG + delta).float(), old_BG=short.logprob_BG.float())
        assert OBJECTIVES[name]()(far).isfinite().all()


def test_rows_without_their_target_do_not_pass_the_model() -> None:
    target, other, third = [5, 6, 2], [5, 7, 2], [8, 2]
    row = {"prompt": [3, 4, 5], "answers": [target, other, target, third], "weight": 1.0}
    passed = Group.row(row)
    assert (passed["answers"], passed["hits"], passed["prompt"]) == (
        [other, target, third],
        [False, True, False],
        [3, 4, 5],
    )
    left = Group.row(row | {"answers": [target, other, third]})
    assert (left["prompt"], left["answers"], left["hits"], left["weight"]) == ([3], [[5]], [False], 1.0)
    logprob_BA = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]])
    of = Group.of(logprob_BA, [passed, left], logprob_BA)
    assert of.mask_BG.tolist() == [[True] * 3, [True, False, False]]
    assert of.hit_BG.tolist() == [[False, True, False], [False] * 3]
    assert of.length_BG.tolist() == [[3, 3, 2], [1, 0, 0]]
    for name in GROUPS:
        moved_BG = gradient(OBJECTIVES[name](), of)
        assert (moved_BG[0] != 0).all() and (moved_BG[1] == 0).all()
        assert OBJECTIVES[name]()(of)[1] == 0
    assert of.logged(1.0)["group_hit"].tolist() == [1, 0]


def test_a_phase_is_told_how_many_groups_hold_their_target() -> None:
    told = Group.told([("A", ["B", "A"]), ("C", ["B", "A"]), ("B", ["B", "C"])])
    assert told == {"groups_with_target": 2, "group_hit": pytest.approx(2 / 3)}


ROLLOUT = ["--negatives", "group_beams", "--num-negatives", "16", "--no-sft"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--objective", "rere"], "--negatives group_beams --num-negatives 16 --no-sft --rows-per-iteration 32"),
        (["--objective", "gspo", "--negatives", "self_play_beam"], "learns from groups"),
        (["--negatives", "group_beams"], "--objective dpo would reject it"),
        (["--objective", "gspo", "--negatives", "group_beams", "--no-sft"], "--num-negatives 1 is no group"),
        (["--objective", "gspo", *ROLLOUT[:-1]], "Add --no-sft"),
        (["--objective", "rere", *ROLLOUT], "--objective gspo"),
        (["--objective", "rere", *ROLLOUT, "--rows-per-iteration", "32", "--prefer-epochs", "2"], "32, 2 times"),
        (["--objective", "gspo", *ROLLOUT, "--protocol", "candidates", "--decode", "score"], "--protocol open"),
        (["--objective", "gspo", *ROLLOUT, "--anchor", "1"], "groups, which have none"),
        (["--objective", "rere", *ROLLOUT, "--rows-per-iteration", "32", "--beta", "0.1"], "rere has no --beta"),
    ],
)
def test_what_groups_cannot_be_learnt_from_is_refused(args: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checks.resolve(parse("", args))


def test_remedies_work_and_methods_are_roll_outs() -> None:
    for args in (
        ["--objective", "rere", *ROLLOUT, "--rows-per-iteration", "32", "--prefer-epochs", "1"],
        ["--objective", "gspo", *ROLLOUT],
        ["--objective", "gspo", *ROLLOUT, "--normalise", "catalogue"],
    ):
        checks.resolve(parse("", args))
    for method, batches in (("ReRe", 1), ("GSPO", 4)):
        for batch in (8, 32):
            train = parse("", ["--preset", "toy", "--method", method, "--prefer-batch", str(batch)]).train
            assert (train.rows_per_iteration, train.prefer_batch) == (batches * batch, batch)
            assert train.iterations * train.rows_per_iteration == 2 * 128
    few = parse("", ["--method", "ReRe", "--iterations", "1", "--rows-per-iteration", "40"]).train
    assert (few.iterations, few.rows_per_iteration) == (2, 32)
    assert resolve(LossConfig(objective="gspo")).clip_low == 3e-4  # pyright: ignore[reportAttributeAccessIssue]
