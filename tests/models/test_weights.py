"""Only a model's own files are read, all of its tensors are there, and they are numbers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rayrec.decoding.exact import check_base
from rayrec.models import policy, weights
from rayrec.models.folder import context_length
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from tests.models.zoo import make

TINY = ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=280)
IDS = torch.tensor([[1, 40, 41, 2, 50, 51]])
CARD = {"phase": "01/sft"}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def change(folder: Path, add: dict[str, torch.Tensor], drop: str = "") -> None:
    file = folder / weights.WHOLE
    held = {name: tensor for name, tensor in load_file(file).items() if name != drop}
    save_file(held | add, file, metadata={"format": "pt"})


def test_other_files_beside_the_models_are_not_read(tmp_path: Path) -> None:
    whole = make("qwen2, tied", tmp_path / "whole")
    sharded = make("qwen2, tied", tmp_path / "sharded", shard="100KB")
    assert len(weights.weight_files(sharded)) > 2
    wanted = logits(policy.load_base(whole))
    stray = {"tok_embeddings.weight": torch.zeros(3, 3), "model.norm.weight": torch.full((64,), math.nan)}
    for folder, name in ((whole, "consolidated.safetensors"), (sharded, "model-00001-of-00077.safetensors")):
        save_file(stray, folder / name, metadata={"format": "pt"})
        check_base(str(folder))
        model = policy.load_base(folder)
        assert torch.equal(logits(model), wanted)
        policy.load_weights(model, folder)
        assert torch.equal(logits(model), wanted)
    assert dict(weights.tensors(sharded)).keys() == load_file(whole / weights.WHOLE).keys()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = make("qwen2, tied", tmp_path, shard="100KB")
    index, part = folder / weights.INDEX, weights.weight_files(folder)[1]
    whole, pointer = part.read_bytes(), b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for open_it in (policy.check_model, policy.load_base, check_base):
        for content in (whole[:-1], whole[:5], b"", pointer):
            part.write_bytes(content)
            with pytest.raises(ValueError, match=rf"{part.name}: damaged.* Copy it there anew.*`git lfs pull`"):
                open_it(str(folder))
    part.write_bytes(whole)
    for content in ("{", "{}", "[]"):
        index.write_text(content)
        with pytest.raises(ValueError, match=rf"{index.name} names no files of weights .* Copy it there anew"):
            policy.check_model(folder)


def test_a_file_of_the_index_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = make("qwen2, tied", tmp_path, shard="100KB")
    gone = weights.weight_files(folder)[1]
    gone.unlink()
    for open_it in (policy.check_model, policy.load_base, check_base):
        with pytest.raises(ValueError, match=f"names .*{gone.name}.*, which are missing"):
            open_it(str(folder))


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("qwen2, untied", "model.layers.1.mlp.up_proj.weight", "its weights lack model.layers.1.mlp.up_proj.weight"),
        ("qwen2, untied", "lm_head.weight", "its weights lack lm_head.weight"),
        (
            "deepseek_v3",
            "model.layers.1.mlp.gate.e_score_correction_bias",
            "its weights lack .*e_score_correction_bias",
        ),
        ("qwen3_moe", "model.layers.0.mlp.experts.1.down_proj.weight", r"experts.down_proj is \(3, 64, 64\)"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.1.w1.weight", "one is missing, or has another shape"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str, lost: str, said: str) -> None:
    folder = make(name, tmp_path)
    change(folder, {}, drop=lost)
    for open_it in (policy.check_model, policy.load_base):
        with pytest.raises(ValueError, match=said):
            open_it(folder)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, wrong: float) -> None:
    folder = make("qwen2, tied", tmp_path, dtype="bfloat16")
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = load_file(folder / weights.WHOLE)[name]
    tensor[3, 5] = wrong
    change(folder, {name: tensor})
    policy.check_model(folder)  # which reads no weight
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        check_base(str(folder))


@pytest.mark.parametrize("lora", [False, True])
def test_a_head_of_its_own_is_the_head_whatever_the_settings_say(tmp_path: Path, lora: bool) -> None:
    """Trainer and generators read the same head, and a policy's settings say that it is there."""
    folder = make("llama", tmp_path / "base")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    assert weights.has_own_head(folder)
    model = policy.load_base(folder)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert model.config.tie_word_embeddings is False
    if lora:
        model = policy.add_lora(model, 2, 4, 0.0)
    state = policy.trainable_state(model)
    policy.save(state, model, policy.load_tokenizer(folder), tmp_path / "policy", CARD, merged=lora)
    saved = tmp_path / "policy" / ("merged" if lora else "")
    assert json.loads((saved / "config.json").read_text())["tie_word_embeddings"] is False
    assert not weights.has_own_head(saved)  # its settings say what its files hold
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(saved)), logits(model.eval()))


def test_a_tokenizer_may_have_more_tokens_than_the_model(tmp_path: Path) -> None:
    make_tiny(["Heat (1995)"], TINY, tmp_path, 0)
    tokenizer = policy.load_tokenizer(tmp_path)
    more = 281 - len(tokenizer)
    tokenizer.add_tokens([f"<extra {i}>" for i in range(more)])
    tokenizer.save_pretrained(str(tmp_path))
    assert len(policy.load_tokenizer(tmp_path)) == 281
    policy.check_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "reach", "setting"),
    [
        ("mistral with a window of 64", 64, "sliding_window"),  # which has no layer_types
        ("qwen2 with a window of 64", 64, "sliding_window"),
        ("gemma3 with a window of 64", 64, "sliding_window"),
        ("gpt_oss", 128, "sliding_window"),
        ("phi3 with longrope", 128, "original_max_position_embeddings"),
        ("gpt2", 1024, "max_position_embeddings"),
        ("gemma3 with vision", 1024, "sliding_window"),
        ("llama", 2048, "max_position_embeddings"),
    ],
)
def test_sequences_end_where_windows_begin(tmp_path: Path, name: str, reach: int, setting: str) -> None:
    folder = make(name, tmp_path)
    assert context_length(ModelConfig(max_length=reach), folder) == reach
    with pytest.raises(ValueError, match=rf"sees {reach} tokens \({setting}\). Set --max-length {reach}"):
        context_length(ModelConfig(max_length=reach + 1), folder)


def test_a_policy_of_a_sharded_base_is_one_file(tmp_path: Path) -> None:
    folder = make("mixtral", tmp_path / "base", shard="100KB")
    model = policy.load_base(folder)
    policy.save(policy.trainable_state(model), model, policy.load_tokenizer(folder), tmp_path / "policy", CARD)
    assert [file.name for file in weights.weight_files(tmp_path / "policy")] == [weights.WHOLE]
    kept = {name: tensor for file in weights.weight_files(folder) for name, tensor in load_file(file).items()}
    saved = load_file(tmp_path / "policy" / weights.WHOLE)
    assert saved.keys() == kept.keys() and all(torch.equal(saved[name], kept[name]) for name in kept)
    shutil.rmtree(folder)
    assert torch.equal(logits(policy.load_base(tmp_path / "policy")), logits(model))
