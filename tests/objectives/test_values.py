"""Identities, values at θ = ref, hand-computed numbers, finite gradients, masks."""

import math
from dataclasses import dataclass, fields, replace

import pytest
import torch

from rayrec.objectives import OBJECTIVES, Objective, Pairs, rewards, setting
from rayrec.objectives.cpo import Cpo
from rayrec.objectives.dmpo import Dmpo
from rayrec.objectives.dpo import Dpo
from rayrec.objectives.dynamicpo import Dynamicpo
from rayrec.objectives.ipo import Ipo
from rayrec.objectives.kto import Kto
from rayrec.objectives.odpo import Odpo, ordered
from rayrec.objectives.orpo import Orpo
from rayrec.objectives.pairs import chosen_nll, log_ratios, mean_k
from rayrec.objectives.recpo import Recpo
from rayrec.objectives.rosepo import Rosepo
from rayrec.objectives.sdpo import Sdpo
from rayrec.objectives.simpo import Simpo

#: Objectives over pairs; those over groups are in test_group.py.
PAIRED = [name for name, kind in OBJECTIVES.items() if kind.shape is Pairs]
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
B = 5


def make(K: int = 3, dtype: torch.dtype = torch.float64, at_reference: bool = False, scale: float = 3.0) -> Pairs:
    """Random pairs with everything that any objective reads; the first ⌈K/2⌉ to K answers of an example exist."""
    g = torch.Generator().manual_seed(K)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    ref_B, ref_BK = scale * draw(B) - 9, scale * draw(B, K) - 9
    pairs = Pairs(
        chosen_B=ref_B if at_reference else ref_B + scale * draw(B),
        rejected_BK=ref_BK if at_reference else ref_BK + scale * draw(B, K),
        mask_BK=torch.arange(K) < torch.tensor([[K - (b % 2) * (K // 2)] for b in range(B)]),
        ref_chosen_B=ref_B,
        ref_rejected_BK=ref_BK,
        chosen_length_B=torch.arange(B) + 2,
        rejected_length_BK=torch.arange(B * K).view(B, K) + 1,
        smoothing_BK=draw(B, K).sigmoid() / 2,
        score_chosen_B=draw(B).abs() + 4,
        score_rejected_BK=draw(B, K).abs().clamp(1, 3),
        baseline_B=torch.zeros(B, dtype=dtype),
    )
    return replace(pairs, smoothing_BK=None)


def close(found: torch.Tensor, wanted: torch.Tensor | float, tolerance: float) -> None:
    wanted = torch.as_tensor(wanted, dtype=found.dtype).expand_as(found)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_identities(dtype: torch.dtype, tolerance: float) -> None:
    one, three = make(1, dtype), make(3, dtype)
    close(Sdpo(0.7)(one), Dpo(0.7)(one), tolerance)
    close(Dmpo(0.7)(one), Dpo(0.7)(one), tolerance)
    close(Recpo(0.7, lam=0)(three), Sdpo(0.7)(three), tolerance)
    close(Rosepo(0.7)(replace(three, smoothing_BK=torch.zeros(B, 3, dtype=dtype))), Dpo(0.7)(three), tolerance)
    none = replace(three, ref_chosen_B=torch.zeros(B, dtype=dtype), ref_rejected_BK=torch.zeros(B, 3, dtype=dtype))
    close(Cpo(0.7, 0.4)(three), Dpo(0.7)(none) + 0.4 * chosen_nll(three), tolerance)  # --anchor


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("K", [1, 3, 15])
def test_values_at_the_reference(dtype: torch.dtype, tolerance: float, K: int) -> None:
    pairs = make(K, dtype, at_reference=True)
    K_B = pairs.mask_BK.sum(1).to(dtype)
    for objective in (Dpo(0.3), Dmpo(0.3)):
        close(objective(pairs), math.log(2), tolerance)
    close(Rosepo(0.3)(replace(pairs, smoothing_BK=torch.full((B, K), 0.2, dtype=dtype))), math.log(2), tolerance)
    close(Sdpo(0.3)(pairs), torch.log(1 + K_B), tolerance)
    close(Dynamicpo(0.3)(pairs), math.log(2), tolerance)
    few = Dynamicpo(0.3, inner="sdpo")
    border_B = few.border(pairs).sum(1).to(dtype)
    close(few(pairs), torch.log(1 + border_B), tolerance)
    assert K == 1 or bool((border_B < K_B).any())
    close(Ipo(0.1)(pairs), 1 / (4 * 0.1**2), tolerance)
    close(Kto(0.3, 1.5, 0.5)(pairs), (1.5 + K_B * 0.5) / (2 * (1 + K_B)), tolerance)
    close(Kto(0.3)(pairs), (1 + K_B * (1 / K_B)) / (2 * (1 + K_B)), tolerance)
    for margin in ("ratio", "log_ratio", "log_diff"):
        recpo = Recpo(0.3, 2.0, margin)
        sums_B = (recpo.gamma_k(pairs).exp() * pairs.mask_BK).sum(1)
        close(recpo(pairs), torch.log(1 + sums_B), tolerance)
    assert pairs.score_chosen_B is not None and pairs.score_rejected_BK is not None
    gap_BK = (pairs.score_chosen_B[:, None] - pairs.score_rejected_BK).log()
    wanted_BK = torch.log1p(torch.exp(0.5 * gap_BK)) * pairs.mask_BK
    close(Odpo(0.3, 0.5)(pairs), wanted_BK.sum(1) / K_B, tolerance)


def pair(chosen: float, rejected: list[float], **more: torch.Tensor) -> Pairs:
    """One example with reference log-probabilities of 0, so that Δ is the log-probability."""
    rejected_BK = torch.tensor([rejected], dtype=torch.float64)
    zeros = {"ref_chosen_B": torch.zeros(1).double(), "ref_rejected_BK": rejected_BK * 0}
    return Pairs(torch.tensor([chosen]).double(), rejected_BK, torch.ones(1, len(rejected)).bool(), **(zeros | more))


def test_hand_computed() -> None:
    def near(loss: torch.Tensor, wanted: float) -> None:
        assert loss.item() == pytest.approx(wanted, rel=1e-12)

    lengths = {"chosen_length_B": torch.tensor([2]), "rejected_length_BK": torch.tensor([[4, 5]])}
    # β = ½, h = −1 − (−3) = 2, so u = 1; the second h = −1 − (−5) = 4, u = 2.
    one, two = math.log1p(math.exp(-1)), math.log1p(math.exp(-2))
    near(Dpo(0.5)(pair(-1, [-3, -5])), (one + two) / 2)
    near(Sdpo(0.5)(pair(-1, [-3, -5])), math.log(1 + math.exp(-1) + math.exp(-2)))
    # Mean of Δ_k is −4: ½·(−1 + 4) = 1.5.
    near(Dmpo(0.5)(pair(-1, [-3, -5])), math.log1p(math.exp(-1.5)))
    # Per token −½, −¾ and −1: gaps ¼ and ½, times β = 2, less γ = 1.
    near(Simpo(2, 1)(pair(-1, [-3, -5], **lengths)), (math.log1p(math.exp(0.5)) + math.log(2)) / 2)
    # (2 − 5)² = 9 and (4 − 5)² = 1; per token (¼ − 5)² and (½ − 5)².
    near(Ipo(0.1)(pair(-1, [-3, -5])), 5)
    near(Ipo(0.1, "mean")(pair(-1, [-3, -5], **lengths)), (4.75**2 + 4.5**2) / 2)
    near(Cpo(0.5, 2)(pair(-1, [-3, -5], **lengths)), (one + two) / 2 + 2 * 0.5)
    # z = 1: 1 − σ(½(−1 − 1)) = σ(1); 1 − σ(½(1 + 3)) = σ(−2); 1 − σ(½(1 + 5)) = σ(−3).
    sigma = [1 / (1 + math.exp(-x)) for x in (1, -2, -3)]
    baseline = {"baseline_B": torch.ones(1).double()}
    near(Kto(0.5, 2, 3)(pair(-1, [-3, -5], **baseline)), (2 * sigma[0] + 3 * (sigma[1] + sigma[2])) / 3)
    # ε = ¼ on u = 1.
    near(Rosepo(0.5)(pair(-1, [-3], smoothing_BK=torch.tensor([[0.25]]).double())), one + 0.25)
    # φ_w = 4, φ_k = 2: margins 2·4/2 = 4, 2·log 2, 2·log 3.
    phi = {"score_chosen_B": torch.tensor([4.0]).double(), "score_rejected_BK": torch.tensor([[2.0]]).double()}
    for margin, gamma in (("ratio", 4), ("log_ratio", 2 * math.log(2)), ("log_diff", 2 * math.log(3))):
        near(Recpo(0.5, 2, margin)(pair(-1, [-3], **phi)), math.log1p(math.exp(gamma - 1)))  # pyright: ignore
    near(Odpo(0.5, 3)(pair(-1, [-3], **phi)), math.log1p(math.exp(3 * math.log(2) - 1)))


def test_orpo_by_hand_and_at_its_edges() -> None:
    lengths = {"chosen_length_B": torch.tensor([2]), "rejected_length_BK": torch.tensor([[4, 5]])}
    equal = pair(-1, [-2, -2.5], **lengths)  # -½ a token in all three
    assert Orpo(0.1)(equal).item() == pytest.approx(0.5 + 0.1 * math.log(2), rel=1e-12)
    # Odds 1/(e - 1) of a half and 1/(e² - 1) of -1: their logarithms, and the gradient of the second term.
    chosen_B = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    some = replace(pair(-1, [-4, -5], **lengths), chosen_B=chosen_B)
    odds = [-math.log(math.expm1(x)) for x in (0.5, 1.0, 1.0)]
    ratio = odds[0] - odds[1]
    loss_B = Orpo(0.3)(some)
    assert loss_B.item() == pytest.approx(0.5 + 0.3 * math.log1p(math.exp(-ratio)), rel=1e-12)
    loss_B.sum().backward()
    slope = -1 - 0.3 / (1 + math.exp(ratio)) / -math.expm1(-0.5)  # -1 of the likelihood
    assert chosen_B.grad is not None and chosen_B.grad.item() == pytest.approx(slope / 2, rel=1e-12)
    # Certain and hopeless answers, in float32: log odds near 13.8 and -60.
    for logprob, wanted in ((0.0, -math.log(1e-6)), (-1e-5, -math.log(1e-5)), (-60.0, -60.0)):
        far = pair(-1, [logprob * 4], chosen_length_B=torch.tensor([2]), rejected_length_BK=torch.tensor([[4]]))
        far = replace(far, chosen_B=far.chosen_B.float(), rejected_BK=far.rejected_BK.float())
        ratio = odds[0] - wanted
        found = Orpo(1.0)(far).item() - 0.5
        assert found == pytest.approx(math.log1p(math.exp(-ratio)), rel=0.05 if logprob == 0 else 1e-3)


def test_dynamicpo_by_hand() -> None:
    # Two rejected answers are at least as likely as the chosen one: N; the mean of the others is -6.
    some, beta = pair(-3, [-2, -3, -5, -7]), 0.5
    assert Dynamicpo().border(some).tolist() == [[True, True, False, False]]
    a, b = (-1.0, 0.0), (-2 + 6.0, -3 + 6.0)
    betas = [beta * (1 + 0.5 * math.tanh((x - y - 6) / (abs(x) + abs(y)))) for x, y in zip(a, b, strict=True)]
    gap = sum(one * x for one, x in zip(betas, a, strict=True)) / 2
    assert Dynamicpo(beta)(some).item() == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-12)
    wanted = math.log1p(sum(math.exp(-one * x) for one, x in zip(betas, a, strict=True)))
    assert Dynamicpo(beta, inner="sdpo")(some).item() == pytest.approx(wanted, rel=1e-12)
    # None is: the top cluster, whichever order they come in; absent answers are none.
    for scores, border in (
        ([-4.0, -9.0, -4.2, -20.0, -9.5, -21.0], [1, 0, 1, 0, 0, 0]),
        ([-9.0, -4.0, -9.1, -9.2, -20.0, -20.5], [0, 1, 0, 0, 0, 0]),
        ([-5.0, -6.0, -7.0], [1, 0, 0]),
        ([-5.0], [1]),
    ):
        assert Dynamicpo().border(pair(-3, scores)).int().tolist() == [border]
        wide = pair(-3, [*scores, -1.0])
        masked = replace(wide, mask_BK=torch.tensor([[True] * len(scores) + [False]]))
        assert Dynamicpo().border(masked).int().tolist() == [[*border, 0]]
    # Every answer counts, and a = b = 0: β/2.
    same = pair(-3, [-3, -3])
    assert Dynamicpo(beta).betas(same, Dynamicpo().border(same)).tolist() == [[beta / 2] * 2]


def test_the_top_cluster_is_that_of_the_best_cuts() -> None:
    """Against every way to cut five to nine sorted scores into three."""
    g = torch.Generator().manual_seed(1)
    for n in range(4, 10):
        scores = (10 * torch.rand(n, generator=g, dtype=torch.float64) - 20).tolist()
        down = sorted(scores, reverse=True)

        def spread(some: list[float]) -> float:
            return sum((x - sum(some) / len(some)) ** 2 for x in some)

        cuts = [
            (spread(down[:i]) + spread(down[i:j]) + spread(down[j:]), i) for i in range(1, n) for j in range(i + 1, n)
        ]
        wanted = min(cuts)[1]
        assert sorted(torch.tensor(scores)[Dynamicpo().border(pair(-3, scores))[0]].tolist(), reverse=True) == (
            pytest.approx(down[:wanted])
        )


def test_margins_smoothing_and_several_negatives_at_once() -> None:
    # u = 1 − ½ and 2 − 1; S-DPO joins them first: e^−½ + e^−1.
    more = {
        "margin_BK": torch.tensor([[0.5, 1.0]]).double(),
        "smoothing_BK": torch.tensor([[0.1, 0.3]], dtype=torch.float64),
    }
    u, v = 0.5, 1.0
    soft = [math.log1p(math.exp(-x)) for x in (u, v)]
    wanted = (soft[0] + 0.1 * u + soft[1] + 0.3 * v) / 2
    assert Dpo(0.5)(pair(-1, [-3, -5], **more)).item() == pytest.approx(wanted, rel=1e-12)
    z = math.log(math.exp(-u) + math.exp(-v))
    wanted = 0.8 * math.log1p(math.exp(z)) + 0.2 * math.log1p(math.exp(-z))
    assert Sdpo(0.5)(pair(-1, [-3, -5], **more)).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("delta", [1e4, -1e4])
def test_gradients_are_finite_far_away(name: str, delta: float) -> None:
    pairs = replace(make(3, torch.float32), smoothing_BK=torch.full((B, 3), 0.1))
    chosen_B, rejected_BK = (pairs.chosen_B + delta).requires_grad_(), (pairs.rejected_BK - delta).requires_grad_()
    loss_B = OBJECTIVES[name]()(replace(pairs, chosen_B=chosen_B, rejected_BK=rejected_BK))
    loss_B.sum().backward()
    assert loss_B.shape == (B,) and loss_B.isfinite().all()
    assert chosen_B.grad is not None and chosen_B.grad.isfinite().all()
    assert rejected_BK.grad is not None and rejected_BK.grad.isfinite().all()


@pytest.mark.parametrize("name", PAIRED)
def test_masked_answers_do_not_exist(name: str) -> None:
    """With two of four places filled the loss is that of K = 2, whatever stands in the others, without gradient."""
    short = replace(make(2), mask_BK=torch.ones(B, 2).bool(), smoothing_BK=torch.full((B, 2), 0.1).double())
    wide = {"mask_BK": torch.tensor([[True, True, False, False]]).expand(B, 4)}
    for field in ("rejected_BK", "ref_rejected_BK", "smoothing_BK", "score_rejected_BK", "rejected_length_BK"):
        junk = torch.full((B, 2), 0 if field == "rejected_length_BK" else torch.nan)
        wide[field] = torch.cat([getattr(short, field), junk], 1)
    rejected_BK = wide["rejected_BK"] = wide["rejected_BK"].requires_grad_()
    chosen_B = wide["chosen_B"] = short.chosen_B.clone().requires_grad_()
    loss_B = OBJECTIVES[name]()(replace(short, **wide))
    close(loss_B, OBJECTIVES[name]()(short), 1e-12)
    loss_B.sum().backward()
    assert chosen_B.grad is not None and chosen_B.grad.isfinite().all()
    assert rejected_BK.grad is not None and rejected_BK.grad.isfinite().all()
    assert (rejected_BK.grad[:, 2:] == 0).all()
    moved_BK = rejected_BK.grad[:, :2] != 0
    assert moved_BK.any(1).all() if name == "dynamicpo" else moved_BK.all()


@pytest.mark.parametrize("name", PAIRED)
def test_an_example_without_negatives_is_harmless(name: str) -> None:
    pairs = replace(make(2), smoothing_BK=torch.full((B, 2), 0.1).double(), mask_BK=torch.zeros(B, 2).bool())
    chosen_B, rejected_BK = pairs.chosen_B.requires_grad_(), pairs.rejected_BK.requires_grad_()
    loss_B = OBJECTIVES[name]()(replace(pairs, chosen_B=chosen_B, rejected_BK=rejected_BK))
    (loss_B.sum() + 0 * chosen_B.sum() + 0 * rejected_BK.sum()).backward()
    assert chosen_B.grad is not None and chosen_B.grad.isfinite().all()
    assert rejected_BK.grad is not None and (rejected_BK.grad == 0).all()
    if name not in ("cpo", "kto", "orpo"):
        assert (loss_B == 0).all() and (chosen_B.grad == 0).all()


@pytest.mark.parametrize("name", PAIRED)
def test_what_an_objective_reads(name: str) -> None:
    objective = OBJECTIVES[name]
    bare = replace(make(2), ref_chosen_B=None, smoothing_BK=torch.zeros(B, 2).double())
    if objective.needs_reference:
        with pytest.raises(ValueError, match="ref_chosen_B"):
            objective()(bare)
    else:
        assert objective()(bare).isfinite().all()
    tensors = {"scores": "score_chosen_B", "smoothing": "smoothing_BK", "neighbour": "baseline_B"}
    full = replace(make(2), smoothing_BK=torch.zeros(B, 2).double())
    for column in objective.reads:
        with pytest.raises(ValueError, match=tensors[column]):
            objective()(replace(full, **{tensors[column]: None}))
    scale = {one.name for one in fields(objective)} & {"beta", "tau"}
    assert {objective(**{one: 0.4}).scale for one in scale} == ({0.4} if scale else set())


@dataclass(frozen=True)
class Hinge(Objective):
    """max(0, margin − h_k), mean over k: a loss from outside, with neither β nor τ."""

    margin: float = setting(1.0, "Smallest gap of the log-ratios, > 0")

    def __call__(self, pairs: Pairs) -> torch.Tensor:
        delta_B, delta_BK = log_ratios(pairs)
        return mean_k((self.margin - delta_B[:, None] + delta_BK).relu(), pairs.mask_BK)


def test_settings_are_checked_by_their_declaration() -> None:
    assert (Hinge().scale, Hinge(0.5).margin) == (1.0, 0.5)
    refused = [(Hinge, {"margin": 0.0}, "> 0"), (Cpo, {"alpha": -1.0}, ">= 0"), (Ipo, {"average": "all"}, "sum, mean")]
    for kind, settings, says in refused:
        with pytest.raises(ValueError, match=says):
            kind(**settings)
    assert (Cpo(alpha=0.0).alpha, Kto(lambda_u=None).lambda_u) == (0, None)


def test_helpers() -> None:
    z = Kto().reference_point
    assert (z(3.0, 2), z(-0.5, 2), z(1.0, 1)) == (1.5, 0, 0)  # one example has no neighbour
    scores = {"score_chosen_B": torch.tensor([3.0]), "score_rejected_BK": torch.tensor([[2.0, 3.0, 4.0]])}
    assert ordered(pair(-1, [-3, -4, -5], **scores)).tolist() == [[True, False, False]]
    with pytest.raises(ValueError, match="log_diff"):
        Recpo(margin="log_diff")(pair(-1, [-3, -4, -5], **scores))


def test_rewards() -> None:
    # β = ½; Δ: −2 against −3 and −1, so gaps 1 and −1.
    margin_B, accuracy_B = rewards(pair(-2, [-3, -1, -5]), 0.5)
    assert margin_B.item() == pytest.approx(0.5 * (-2 + 3)) and accuracy_B.item() == pytest.approx(2 / 3)
    margin_B, _ = rewards(replace(pair(-2, [-3]), ref_chosen_B=None), 1.0)
    assert margin_B.item() == 1
