"""Interfaces of transformers that the packed pass uses and that are not documented; a test that fails names one."""

from __future__ import annotations

import inspect

from transformers import LlamaConfig
from transformers.cache_utils import Cache, DynamicLayer


def test_a_cache_takes_layers_of_a_class_of_ours() -> None:
    name = "layer_class_to_replicate"
    assert name in inspect.signature(Cache).parameters, f"transformers: Cache has no {name}"


def test_a_layer_keeps_keys_and_values_and_is_updated_with_new_ones() -> None:
    layer = DynamicLayer()
    for name in ("keys", "values", "is_initialized", "get_seq_length"):
        assert hasattr(layer, name), f"transformers: DynamicLayer has no {name}"
    found = [*inspect.signature(DynamicLayer.update).parameters]
    assert found[1:3] == ["key_states", "value_states"], f"transformers: DynamicLayer.update takes {found}"


def test_a_configuration_names_its_attention() -> None:
    name = "_attn_implementation"
    assert hasattr(LlamaConfig(), name), f"transformers: configurations have no {name}"
