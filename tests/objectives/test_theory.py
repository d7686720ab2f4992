"""What the papers prove about their losses."""

import pytest
import torch

from rayrec.objectives import Pairs
from rayrec.objectives.dpo import Dpo
from rayrec.objectives.sdpo import Sdpo


def test_sdpo_gradient_is_its_closed_form() -> None:
    """S-DPO section 3.1: −β σ(log Σ_d e^g_d) [∇log π(w) − Σ_d ∇log π(d) e^g_d / Σ e^g], g_d = β(Δ_d − Δ_w)."""
    g = torch.Generator().manual_seed(0)
    beta, table = 0.7, torch.randn(6, 9, generator=g).double().requires_grad_()
    ref = torch.randn(6, 9, generator=g).double().log_softmax(1)
    chosen, rejected = torch.arange(6), torch.randint(9, (6, 4), generator=g)
    logp = table.log_softmax(1)
    rejected_BK, ref_BK = logp.gather(1, rejected), ref.gather(1, rejected)
    pairs = Pairs(logp[range(6), chosen], rejected_BK, torch.ones(6, 4).bool(), ref[range(6), chosen], ref_BK)
    Sdpo(beta)(pairs).sum().backward()

    probability = logp.detach().exp()
    wanted = torch.zeros_like(ref)
    for b in range(6):
        gradients = torch.eye(9).double() - probability[b]  # row i is ∇ log π(i) in the logits
        delta = (logp[b] - ref[b]).detach()
        score = beta * (delta[rejected[b]] - delta[chosen[b]])
        bracket = gradients[chosen[b]] - (score.softmax(0)[:, None] * gradients[rejected[b]]).sum(0)
        wanted[b] = -beta * score.logsumexp(0).sigmoid() * bracket
    torch.testing.assert_close(table.grad, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("equal_pairs", ["kept", "dropped"])
@pytest.mark.parametrize("negatives", ["uniform", "other", "reference"])
def test_dpo_converges_to_the_reweighted_reference(beta: float, equal_pairs: str, negatives: str) -> None:
    """SPRec theorem 1: positives from p, negatives from q give π ∝ π_ref (p/q)^(1/β), to 1e-3 in total variation."""
    items = 6
    g = torch.Generator().manual_seed(1)
    p, other, ref = (torch.randn(items, generator=g).double().softmax(0) for _ in range(3))
    q = {"uniform": torch.full((items,), 1 / items).double(), "other": other, "reference": ref}[negatives]
    weight = p[:, None] * q[None, :]  # the exact expectation over pairs
    if equal_pairs == "dropped":
        weight = weight * (1 - torch.eye(items))
    logits = torch.zeros(items).double().requires_grad_()
    optimiser = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logp = logits.log_softmax(0)
        rows, columns = torch.cartesian_prod(torch.arange(items), torch.arange(items)).T
        pairs = Pairs(
            logp[rows],
            logp[columns, None],
            torch.ones(items * items, 1).bool(),
            ref.log()[rows],
            ref.log()[columns, None],
        )
        value = (weight.flatten() * Dpo(beta)(pairs)).sum()
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]
    wanted = ref * (p / q) ** (1 / beta)
    found, wanted = logits.detach().softmax(0), wanted / wanted.sum()
    assert (found - wanted).abs().sum().item() / 2 < 1e-3
    if negatives == "reference" and beta == 1:
        assert (found - p).abs().sum().item() / 2 < 1e-3
    if negatives == "uniform":
        assert (found - p).abs().sum().item() / 2 > 0.05  # the popularity bias
