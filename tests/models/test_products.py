"""oneDNN's linear layers: torch's values and gradients, on whatever shapes a pass has."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rayrec.models.products import OneDnnLinear, by_onednn


def both(bias: bool, x: Tensor) -> list[tuple[Tensor, ...]]:
    """Outputs and gradients of torch's layer, and of oneDNN's."""
    plain = nn.Linear(192, 200, bias=bias)
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


def close(wanted: Tensor, made: Tensor) -> bool:
    """Within the rounding of a sum of some hundred numbers."""
    return torch.allclose(wanted, made, rtol=0, atol=1e-6 * float(wanted.abs().max()) if wanted.numel() else 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 192), (3, 5, 192), (0, 192), (64, 192), (3, 111, 192), (2, 3, 97, 192)], ids=str)
def test_values_and_gradients_are_torchs(bias: bool, shape: tuple[int, ...]) -> None:
    assert all(map(close, *both(bias, torch.randn(shape))))


def test_rows_in_any_order_of_memory_are_the_same() -> None:
    assert all(map(close, *both(True, torch.randn(192, 330).t())))


def test_a_frozen_weight_has_no_gradient_and_its_input_has_one() -> None:
    layer = nn.Linear(256, 128)
    by_onednn(nn.ModuleList([layer]))
    assert type(layer) is OneDnnLinear
    layer.requires_grad_(False)
    x = torch.randn(70, 256, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    assert close(layer.weight.sum(0).expand(70, 256), x.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs(dtype: torch.dtype) -> None:
    plain = nn.Linear(256, 128, dtype=dtype)
    fast = copy.deepcopy(plain)
    by_onednn(nn.ModuleList([fast]))
    x = torch.randn(3, 256, dtype=dtype)
    assert type(fast) is OneDnnLinear and torch.equal(plain(x), fast(x))


def test_small_layers_stay_torchs() -> None:
    layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 1024)])
    by_onednn(layers)
    assert [type(layer) for layer in layers] == [nn.Linear, OneDnnLinear]
