"""The linear layers of a model on a CPU, by whichever of torch's two libraries is fast there.

torch gives float32 matrix products to MKL, which on AMD's processors with AVX-512 reaches less than half of what oneDNN
does. oneDNN comes with torch too, but is asked for lower precisions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Rows of a product. oneDNN compiles a kernel for each number of rows that it meets, which takes as long as some
#: products do, and batches hardly ever have as many tokens as another; so products are cut up, and torch has the rest.
_PIECES = (256, 64)
#: Weights of a layer; smaller ones gain nothing.
_LEAST = 1 << 15


@cache
def wanted() -> bool:
    """Whether oneDNN is the faster one here."""
    about = Path("/proc/cpuinfo")
    amd = about.exists() and "AuthenticAMD" in about.read_text()
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()


def by_onednn(model: nn.Module) -> None:
    """Let the linear layers of ``model`` take oneDNN's products where they compute in float32 on a CPU."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= _LEAST:
            module.__class__ = OneDnnLinear


class OneDnnLinear(nn.Linear):
    """A linear layer whose products are oneDNN's; in other precisions, and on GPUs, it is torch's."""

    def forward(self, input: Tensor) -> Tensor:
        fits = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu" and input.numel()
        if not fits:
            return super().forward(input)
        if torch.is_grad_enabled():
            return _Linear.apply(input, self.weight, self.bias)  # pyright: ignore[reportReturnType]
        return _linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        grad_MO, needs = grad.flatten(0, -2), ctx.needs_input_grad
        of_x = _linear(grad, weight.t()) if needs[0] else None
        of_weight = _summed(grad_MO, x.flatten(0, -2)) if needs[1] else None
        return of_x, of_weight, grad_MO.sum(0) if needs[2] else None


def _linear(x: Tensor, weight_OI: Tensor, bias: Tensor | None = None) -> Tensor:
    x_MI = x.flatten(0, -2)
    made_MO = x.new_empty(len(x_MI), len(weight_OI))
    for some, product in _pieces(len(x_MI)):
        made_MO[some] = product(x_MI[some], weight_OI, bias)
    return made_MO.view(*x.shape[:-1], -1)


def _summed(grad_MO: Tensor, x_MI: Tensor) -> Tensor:
    """The product of two tensors over their rows, [O, I]."""
    made_OI = grad_MO.new_zeros(grad_MO.shape[1], x_MI.shape[1])
    for some, product in _pieces(len(x_MI)):
        made_OI += product(grad_MO[some].t(), x_MI[some].t(), None)
    return made_OI


def _pieces(rows: int) -> Iterator[tuple[slice, Callable[[Tensor, Tensor, Tensor | None], Tensor]]]:
    """Rows from the first to the last, and whose product they take."""
    start = 0
    for size in _PIECES:
        while rows - start >= size:
            yield slice(start, start + size), _onednn
            start += size
    if start < rows:
        yield slice(start, rows), nn.functional.linear


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
