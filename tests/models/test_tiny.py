"""The tiny model is an ordinary folder and repeats to the byte."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.prompts import make_template

TITLES = [f"{a} {b} (19{n})" for a in ("Toy", "Lion", "Star") for b in ("King", "Story", "Wars") for n in range(60, 90)]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    config = ModelConfig(tiny_hidden=64, tiny_layers=1, tiny_vocab=300)
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_tiny(TITLES, config, tmp_path / name, seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert [name for name in a if a[name] != c[name]] == ["model.safetensors"]
    assert torch.equal(torch.get_rng_state(), state)


def test_it_opens_as_any_model(tmp_path: Path) -> None:
    make_tiny(TITLES, ModelConfig(), tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.2e6
    assert model.dtype == torch.float32 and model.config.max_position_embeddings >= 512
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == ids
    template = make_template("compact", tokenizer)
    assert template.lossy([*TITLES, "</s> 'é' \"日本\"\n"]) == []
    prompt = torch.tensor([template.prompt_ids(TITLES[:3])])
    assert model.generate(prompt, min_new_tokens=4, max_new_tokens=4).shape == (1, prompt.shape[1] + 4)


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        make_tiny(TITLES, ModelConfig(tiny_hidden=100), tmp_path, 0)
    with pytest.raises(ValueError, match="need 259"):
        make_tiny(TITLES, ModelConfig(tiny_vocab=100), tmp_path, 0)
