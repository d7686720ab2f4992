"""Adapted layers against peft's own."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayrec.models import adapters
from rayrec.models.adapters import AdaptedLinear, FusedLinear


class Two(nn.Module):
    """Two linear layers, with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def model(dtype: torch.dtype, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    plain: nn.Module = Two().to(dtype)
    found = get_peft_model(plain, LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules="all-linear"))  # pyright: ignore
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return found


def passed(lm: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients of a pass, in float32."""
    x = x.clone().requires_grad_()
    y = lm(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [t.detach().float() for t in (y, x.grad, *(p.grad for p in lm.parameters() if p.grad is not None))]  # pyright: ignore


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_peft(dtype: torch.dtype) -> None:
    theirs, ours = model(dtype), model(dtype)
    adapters.lighten(ours)
    assert [type(m) for m in ours.modules()].count(AdaptedLinear) == 2
    x = torch.randn(2, 5, 24, dtype=dtype)
    wanted, found = passed(theirs, x), passed(ours, x)
    assert len(found) == len(wanted) == 6
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= (1e-5 if dtype == torch.float32 else 0.02) * other.abs().max()


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_dropout_are_those_of_the_same_places(fused: bool) -> None:
    lm = model(torch.float64, 0.3)
    for p in lm.parameters():
        p.data = p.data.double()
    adapters.lighten(lm, fused)
    x = torch.randn(3, 24, dtype=torch.float64)

    def output() -> Tensor:
        torch.manual_seed(1)
        adapters.copy(lm)
        return lm(x).square().sum()

    output().backward()
    trained = [p for p in lm.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            assert parameter.grad is not None
            whole, grad = parameter.detach().clone(), parameter.grad
            step = torch.randn_like(whole)
            parameter.copy_(whole + 1e-6 * step)
            above = output()
            parameter.copy_(whole - 1e-6 * step)
            slope = (above - output()) / 2e-6
            parameter.copy_(whole)
            assert slope == pytest.approx(float((grad * step).sum()), rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_computed_again_drops_the_same_places(fused: bool) -> None:
    lm, grads = model(torch.float32, 0.5), []
    adapters.lighten(lm, fused)
    adapters.copy(lm)
    x = torch.randn(30, 24)
    for again in (False, True):
        torch.manual_seed(3)
        lm.zero_grad()
        y = checkpoint(lm, x, use_reentrant=False) if again else lm(x)
        y.square().sum().backward()
        grads.append([p.grad for p in lm.parameters() if p.grad is not None])
    assert len(grads[0]) == 4 and all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_dropout_takes_each_place_with_its_probability() -> None:
    """100 draws of 10,000 places at 0.05: 50,000 expected, standard deviation 218."""
    torch.manual_seed(0)
    counts = torch.zeros(10_000)
    for _ in range(100):
        places = adapters._draw(torch.zeros(100, 100), 0.05)
        assert len(places.unique()) == len(places) and int(places.max()) < 10_000
        counts[places] += 1
    assert abs(float(counts.sum()) - 50_000) < 5 * 218
    thirds = [float(counts[i::3].sum()) / len(counts[i::3]) for i in range(3)]
    assert all(abs(mean - 5) < 0.2 for mean in thirds), thirds  # standard deviation 0.038
    assert float(counts.var()) == pytest.approx(4.75, rel=0.1)  # of a binomial distribution


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_form_for_gpus_has_the_outputs_and_gradients_of_peft(dtype: torch.dtype) -> None:
    theirs, ours = model(dtype), model(dtype)
    adapters.lighten(ours, fused=True)
    adapters.copy(ours)
    assert [type(m) for m in ours.modules()].count(FusedLinear) == 2
    x = torch.randn(2, 5, 24, dtype=dtype)
    # One layer: between two, a rounded number may be on the other side of relu's edge.
    for one, other in zip(
        *(passed(lm.get_submodule("base_model.model.first"), x) for lm in (theirs, ours)), strict=True
    ):
        assert (one - other).abs().max() <= (1e-5 if dtype == torch.float32 else 0.02) * other.abs().max()


def test_the_form_for_gpus_reads_new_weights_once_they_are_copied() -> None:
    lm, x = model(torch.bfloat16), torch.randn(3, 24, dtype=torch.bfloat16)
    adapters.lighten(lm, fused=True)
    adapters.copy(lm)
    before = lm(x)
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            parameter.data += 1.0
    assert torch.equal(lm(x), before)
    adapters.copy(lm)
    after = model(torch.bfloat16)
    after.load_state_dict(lm.state_dict())
    assert (lm(x) - after(x)).abs().max() <= 0.02 * after(x).abs().max() and not torch.equal(lm(x), before)
