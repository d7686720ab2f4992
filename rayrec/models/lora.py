"""Adapters of peft in a model: their layers, their names and settings in files, and the weights with them merged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor

from rayrec.models import item_vectors


def layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and modules of all adapters of peft."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def file_name(name: str) -> str:
    """Return the name that peft's files give to an adapter parameter."""
    return name.replace(".default.", ".")


def merge(state: Mapping[str, Tensor], model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of the base model with its adapter added in float32, in the base's dtype."""
    held = dict(model.named_parameters()) | dict(state)
    adapted = {_adapted(module, layer): (module, layer) for module, layer in layers(model)}
    for name, weight in held.items():
        if "lora_" in name or item_vectors.owns(name):
            continue
        if weight.numel() == 0:
            raise ValueError(f"{name} is cut up by ZeRO-3. Gather the frozen weights into the state to merge them.")
        merged = weight.detach().cpu()
        if name in adapted:
            module, layer = adapted[name]
            a, b = (held[f"{module}.{part}.default.weight"].detach().cpu().float() for part in ("lora_A", "lora_B"))
            merged = (merged.float() + layer.scaling["default"] * _delta(layer, a, b)).to(merged.dtype)
        yield name.removeprefix("base_model.model.").replace(".base_layer", ""), merged


def fold(model: Any, kept: dict[str, Tensor]) -> None:
    """Add the adapters to the weights that they adapt, in float32: a pass then launches no kernel for them.

    ``kept`` holds these weights as they were, on the CPU; the first call fills it. Called again after other adapters
    were copied in. Adapters that are not plain products stay beside their weights.
    """
    with torch.no_grad():
        for name, layer in layers(model):
            plain = [*layer.lora_A] == ["default"] and not layer.lora_variant and not any(layer.lora_bias.values())
            if isinstance(layer, ParamWrapper) or not plain:
                continue
            weight = layer.base_layer.weight
            if name not in kept:
                kept[name] = weight.detach().to("cpu", copy=True)
            a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
            delta = layer.scaling["default"] * _delta(layer, a, b)
            weight.copy_(kept[name].to(weight.device).float() + delta)
            layer.merged_adapters = ["default"]


def _adapted(module: str, layer: Any) -> str:
    """Return the name of the parameter that an adapter layer changes; adapters of one module's experts are nested."""
    below, name = layer.base_layer, f"{module}.base_layer"
    while isinstance(below, LoraLayer):
        below, name = below.base_layer, f"{name}.base_layer"
    return f"{name}.{layer.parameter_name if isinstance(layer, ParamWrapper) else 'weight'}"


def _delta(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    """Return what an adapter adds to its weight, before scaling; of experts as ParamWrapper reads A and B."""
    if isinstance(layer, ParamWrapper) and layer.num_experts > 1:
        a, b = a.reshape(layer.num_experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, layer.num_experts)
        to = "eoi" if layer._did_swap_in_out_features else "eio"
        return torch.einsum(f"ore,eri->{to}", b, a)
    return (b @ a).T if layer.fan_in_fan_out else b @ a


def write_settings(model: PeftModel, base: str, folder: Path) -> None:
    """Write adapter_config.json with equal bytes for equal settings."""
    settings = model.peft_config["default"].to_dict() | {"inference_mode": True, "base_model_name_or_path": base}
    # A set has another order in every process; sorted, the file's bytes repeat.
    text = json.dumps(settings, indent=2, sort_keys=True, default=lambda value: sorted(value))
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
