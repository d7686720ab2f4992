"""oneDNN's linear layers: torch's values and gradients, on whatever shapes a pass has."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rayrec.models.products import OneDnnLinear, by_onednn


def both(bias: bool, x: Tensor) -> list[tuple[Tensor, ...]]:
    """Outputs and gradients of torch's layer, and of oneDNN's."""
    plain = nn.Linear(24, 40, bias=bias)
    fast = copy.deepcopy(plain)
    by_onednn(nn.ModuleList([fast]))
    assert type(fast) is OneDnnLinear and fast.state_dict().keys() == plain.state_dict().keys()
    found = []
    for layer in (plain, fast):
        own = x.clone().requires_grad_()
        y = layer(own)
        y.square().sum().backward()
        assert own.grad is not None
        found.append((y.detach(), own.grad, *(p.grad for p in layer.parameters())))
        with torch.no_grad():
            assert (layer(x) - y).abs().max() == 0 if x.numel() else True
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24), (1, 1, 24), (0, 24), (2, 3, 4, 24)], ids=str)
def test_values_and_gradients_are_torchs(bias: bool, shape: tuple[int, ...]) -> None:
    for wanted, made in zip(*both(bias, torch.randn(shape)), strict=True):
        assert torch.allclose(wanted, made, rtol=1e-5, atol=1e-5)


def test_rows_in_any_order_of_memory_are_the_same() -> None:
    for wanted, made in zip(*both(True, torch.randn(24, 9).t()), strict=True):
        assert torch.allclose(wanted, made, rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_has_no_gradient_and_its_input_has_one() -> None:
    layer = nn.Linear(4, 3)
    by_onednn(nn.ModuleList([layer]))
    layer.requires_grad_(False)
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    assert torch.allclose(x.grad, layer.weight.sum(0).expand(2, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs(dtype: torch.dtype) -> None:
    plain = nn.Linear(8, 8, dtype=dtype)
    fast = copy.deepcopy(plain)
    by_onednn(nn.ModuleList([fast]))
    x = torch.randn(3, 8, dtype=dtype)
    assert torch.equal(plain(x), fast(x))
