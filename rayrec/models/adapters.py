"""Adapted linear layers as one function each: what training spends on LoRA beside the products of the base.

peft's own layer keeps three tensors of the input's size for the backward pass (its copy in float32, its dropout and the
mask), draws a float for each of their numbers, and casts the input and the output of a bfloat16 base. Here the adapter
is cast and the input is kept once, for all layers that read it; of the dropout only the places are kept, on a GPU the
mask.
Shapes: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class AdaptedLinear(Linear):
    """peft's LoRA layer over ``nn.Linear`` with one adapter, named `default`, that computes the same in less."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
        # ZeRO-3 gathers the weights of the modules that are called.
        if args or kwargs or self.merged or self.disable_adapters or hasattr(a, "ds_id"):
            return super().forward(x, *args, **kwargs)
        dropout: Any = self.lora_dropout["default"]
        p = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        base: Any = self.base_layer
        return _Adapted.apply(x, base.weight, base.bias, a, b, self.scaling["default"], p)  # pyright: ignore


class FusedLinear(Linear):
    """The same in the fewest kernels, for GPUs: of 16-bit copies of the adapters, which :func:`copy` makes."""

    copies: tuple[Tensor, ...] = ()
    """A [R, I], B [O, R], and both times the scale."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or self.merged or self.disable_adapters or not self.copies:
            return super().forward(x, *args, **kwargs)
        dropout: Any = self.lora_dropout["default"]
        p = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        a, b, base = self.lora_A["default"].weight, self.lora_B["default"].weight, self.base_layer
        return _Fused.apply(x, base.weight, base.bias, a, b, self.copies, p)  # pyright: ignore


def lighten(model: Any, fused: bool = False) -> None:
    """Let every adapted ``nn.Linear`` of ``model`` compute by :class:`AdaptedLinear`, or :class:`FusedLinear`; other
    layers stay as they are."""
    for module in model.modules():
        plain = type(module) is Linear and type(module.base_layer) is nn.Linear
        if plain and [*module.lora_A] == ["default"] and not module.lora_variant and not any(module.lora_bias.values()):
            module.__class__ = FusedLinear if fused else AdaptedLinear


def copy(model: Any) -> None:
    """Copy the weights of all fused adapters in the base's precision, in three operations for all layers.

    Called whenever they may have changed, before a pass. ZeRO-3 has cut them up: there peft's own layers compute.
    """
    layers: list[Any] = [module for module in model.modules() if type(module) is FusedLinear]
    layers = [layer for layer in layers if not hasattr(layer.lora_A["default"].weight, "ds_id")]
    if not layers:
        return
    weights = [layer.lora_A["default"].weight.detach() for layer in layers]
    weights += [layer.lora_B["default"].weight.detach() for layer in layers]
    foreach: Any = torch
    scaled = foreach._foreach_mul(weights, [layer.scaling["default"] for layer in layers] * 2)
    dtype, n = layers[0].base_layer.weight.dtype, len(layers)
    if not layers[0].copies:
        made = [torch.empty_like(one, dtype=dtype) for one in [*weights, *weights]]
        for i, layer in enumerate(layers):
            layer.copies = tuple(made[i::n])
    with torch.no_grad():
        foreach._foreach_copy_([layer.copies[k] for k in range(4) for layer in layers], [*weights, *scaled])


class _Adapted(torch.autograd.Function):
    """y = x Wᵀ + bias + scaling · dropout(x) Aᵀ Bᵀ, for a frozen W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, a: Tensor, b: Tensor, scaling: float, p: float) -> Any:
        x_TI = x.flatten(0, -2)
        # What is left by dropout is grown by 1 / (1 − p), which A may do as well.
        a_RI, b_OR = (a / (1 - p)).to(x.dtype), (b * scaling).to(x.dtype)
        dropped = _draw(x_TI, p) if p else None
        h_TR = _drop(x_TI, dropped) @ a_RI.T
        y_TO = _times(x_TI, weight.T)
        if bias is not None:
            y_TO += bias
        y_TO.addmm_(h_TR, b_OR.T)
        ctx.save_for_backward(x_TI, weight, a_RI, b_OR, h_TR, dropped)
        ctx.scaling, ctx.p, ctx.shape = scaling, p, x.shape
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_TI, weight, a_RI, b_OR, h_TR, dropped = ctx.saved_tensors
        g_TO = grads[0].flatten(0, -2)
        g_TR = g_TO @ b_OR
        grad_b = (g_TO.T @ h_TR).float() * ctx.scaling
        grad_a = (g_TR.T @ _drop(x_TI, dropped)).float() / (1 - ctx.p)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _times(g_TO, weight)
            if dropped is None:
                grad_x.addmm_(g_TR, a_RI)
            else:
                grad_x += _drop(g_TR @ a_RI, dropped, inplace=True)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None


class _Fused(torch.autograd.Function):
    """:class:`_Adapted` of the copies, which hold the scale already; dropout draws a mask and grows what is left."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Any, a: Tensor, b: Tensor, copies: Any, p: float) -> Any:
        x_TI = x.flatten(0, -2)
        _, b_OR, scaled_RI, _ = copies
        kept_TI, mask_TI = torch.native_dropout(x_TI, p, True) if p else (x_TI, None)
        h_TR = kept_TI @ scaled_RI.T
        y_TO = x_TI @ weight.T if bias is None else torch.addmm(bias, x_TI, weight.T)
        y_TO.addmm_(h_TR, b_OR.T)
        ctx.save_for_backward(x_TI, weight, h_TR, mask_TI)
        ctx.copies, ctx.grown, ctx.shape = copies, 1 / (1 - p), x.shape
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_TI, weight, h_TR, mask_TI = ctx.saved_tensors
        a_RI, _, _, scaled_OR = ctx.copies
        g_TO = grads[0].flatten(0, -2)
        g_TR = g_TO @ scaled_OR
        grad_b = _product(g_TO.T, h_TR)
        kept_TI = x_TI if mask_TI is None else torch.ops.aten.native_dropout_backward(x_TI, mask_TI, ctx.grown)
        grad_a, grad_x = _product(g_TR.T, kept_TI), None
        if ctx.needs_input_grad[0]:
            grad_x = g_TO @ weight
            if mask_TI is None:
                grad_x.addmm_(g_TR, a_RI)
            else:
                grad_x.addcmul_(g_TR @ a_RI, mask_TI, value=ctx.grown)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x · y in float32, the precision of the adapters; a GPU sums in it anyway."""
    return torch.mm(x, y, out_dtype=torch.float32) if x.is_cuda else (x @ y).float()


def _times(x_TI: Tensor, w_IO: Tensor) -> Tensor:
    """x · w, by float32 on a CPU whose products of bfloat16 take twice as long: one without tiles."""
    if x_TI.dtype == torch.bfloat16 and x_TI.device.type == "cpu" and not torch.cpu._is_amx_tile_supported():
        return (x_TI.float() @ w_IO.float()).bfloat16()
    return x_TI @ w_IO


def _draw(x_TI: Tensor, p: float) -> Tensor:
    """Return the places of ``x_TI`` that dropout takes, each with probability ``p``, seeded by torch's state.

    As flat indices, by their gaps, which takes a tenth of the time of a mask.
    """
    count, seed = x_TI.numel(), int(torch.randint(2**63 - 1, ()))
    draw = np.random.Generator(np.random.SFC64(seed))
    places, end = [], -1
    while end < count:
        many = int((count - end) * p) + 8 * math.isqrt(int((count - end) * p)) + 8
        # The whole part of an exponential number is a geometric one.
        gaps = (draw.standard_exponential(many, np.float32) * np.float32(-1 / math.log1p(-p))).astype(np.int64) + 1
        places.append(end + np.cumsum(gaps))
        end = int(places[-1][-1])
    found = np.concatenate(places)
    return torch.from_numpy(found[: np.searchsorted(found, count)])


def _drop(x_TI: Tensor, dropped: Tensor | None, inplace: bool = False) -> Tensor:
    """Return ``x_TI`` with zeros at the places ``dropped``."""
    if dropped is None:
        return x_TI
    x_TI = x_TI if inplace else x_TI.clone()
    x_TI.view(-1).index_fill_(0, dropped, 0.0)
    return x_TI
