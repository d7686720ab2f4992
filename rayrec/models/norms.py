"""Root-mean-square norms in one kernel: transformers' own take eight on a GPU, and sixteen back."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


def fuse(model: nn.Module) -> int:
    """Let the norms of a model be computed by PyTorch's `rms_norm`, where that is the same; return how many are.

    Some models norm otherwise: by 1 + weight, in parts, or the mean too. So one norm of each class and size is compared
    in float32, and those of other classes or sizes are left as they are.
    """
    same: dict[tuple[type, torch.Size], bool] = {}
    found = [(one, weight) for one in model.modules() if (weight := _weight(one)) is not None]
    for one, weight in found:
        kind = type(one), weight.shape
        if kind not in same:
            same[kind] = _is_plain(one, weight)
    fused = [one for one, weight in found if same[type(one), weight.shape]]
    for one in fused:
        one.__class__ = _fused(type(one))
    return len(fused)


def _weight(module: nn.Module) -> Tensor | None:
    """The weight of a norm that has nothing else to train or keep; None of other modules."""
    own = {name: value for name, value in (*module.named_parameters(), *module.named_buffers())}
    named = type(module).__name__.endswith("RMSNorm") and _epsilon(module) is not None
    return own["weight"] if named and own.keys() == {"weight"} and own["weight"].dim() == 1 else None


def _epsilon(module: Any) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


@torch.no_grad()
def _is_plain(module: nn.Module, weight: Tensor) -> bool:
    """Whether a norm gives what `rms_norm` gives, for large and small numbers and weights that are not all one."""
    kept, size = weight.data, len(weight)
    generator = torch.Generator().manual_seed(0)
    numbers, other = (torch.randn(n, size, generator=generator).to(weight.device) for n in (3, 1))
    numbers = numbers * torch.tensor([[1e-3], [1.0], [50.0]], device=weight.device)
    try:
        weight.data = other[0]
        return torch.allclose(module(numbers), rms_norm(numbers, (size,), other[0], _epsilon(module)), 1e-5, 1e-6)
    except (TypeError, ValueError, RuntimeError):  # it takes something else beside
        return False
    finally:
        weight.data = kept


@cache
def _fused(kind: type) -> type:
    """The class of a norm with PyTorch's own forward pass."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight.shape, self.weight, _epsilon(self))

    return type(kind.__name__, (kind,), {"forward": forward})
