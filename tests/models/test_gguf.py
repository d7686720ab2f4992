"""A GGUF file becomes the folder of the same model, once."""

import os
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrec.models.gguf import folder_of
from rayrec.models.policy import check_model
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny

CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"


def write_gguf(model: Any, tokenizer: Any, file: Path) -> None:
    """Write a small Llama as llama.cpp's converter does: its names, and query and key rows in its order of pairs."""
    settings, writer = model.config, gguf.GGUFWriter(str(file), "llama")
    writer.add_name("small")
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(settings.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(settings.vocab_size))
    writer.add_tokenizer_model("gpt2")
    tokens[tokenizer.eos_token_id] = "<|endoftext|>"  # transformers adds it where it is missing
    writer.add_token_list([token or f"[unused{i}]" for i, token in enumerate(tokens)])
    writer.add_token_types([gguf.TokenType.CONTROL if i < 3 else gguf.TokenType.NORMAL for i in range(len(tokens))])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, settings.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        if "q_proj" in name or "k_proj" in name:
            heads = settings.num_attention_heads
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        stem, _, end = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{end}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_folder_holds_the_files_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make_tiny(["ab", "cd"] * 9, ModelConfig(tiny_hidden=64, tiny_layers=2, tiny_vocab=300), tmp_path / "tiny", 0)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    write_gguf(model, AutoTokenizer.from_pretrained(tmp_path / "tiny"), tmp_path / "small.F32.gguf")

    folder = Path(folder_of(str(tmp_path / "small.F32.gguf")))
    check_model(folder)
    found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(3, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    wanted = model.to(torch.bfloat16).float()(input_ids=ids).logits  # the folder is in bfloat16
    assert torch.allclose(found(input_ids=ids).logits, wanted, atol=1e-5)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert AutoTokenizer.from_pretrained(folder).chat_template == CHAT

    made = os.stat(folder / "model.safetensors").st_mtime_ns
    assert folder_of(str(tmp_path / "small.F32.gguf")) == str(folder)
    assert os.stat(folder / "model.safetensors").st_mtime_ns == made


def test_other_models_are_left_alone_and_bad_files_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folder_of("org/model") == "org/model" and folder_of(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ValueError, match=r"absent\.gguf: no such file\. Name a GGUF file"):
        folder_of(str(tmp_path / "absent.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(ValueError, match=r"bad\.gguf: transformers cannot read this GGUF file\. Name the model's"):
        folder_of(str(tmp_path / "bad.gguf"))
    assert not list((tmp_path / "home").rglob("*.safetensors"))
