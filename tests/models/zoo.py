"""Tiny random models of many architectures, with tokenizers of several habits, as Hugging Face folders."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = [
    *(
        f"{a} {b} ({year})"
        for a in ("Amber", "Basalt", "Cedar", "Delta")
        for b in ("Rain", "Field")
        for year in (1984, 2001)
    ),
    "A user chose these titles, oldest first, one per line:\n",
    "Answer with the one title that this user chooses next, and nothing else.",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
}
ONE: dict[str, Any] = SIZES | {"num_key_value_heads": 1}
WIDE: dict[str, Any] = ONE | {"head_dim": 32}
GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 1024}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@dataclass(frozen=True)
class Kind:
    """A model of the zoo: its ``model_type``, its tokenizer, and the settings of its class."""

    type: str
    tokenizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    """Words of the refusal; empty for a model that runs."""
    no_lora: str = ""
    """Words of the refusal of adapters."""
    scale: float = 0.15
    """Standard deviation of what is added to every weight, so that a wrong mask or position shows."""


STATES = "wanted attention in every layer"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 16}
LONG |= {"long_factor": [1.0 + 0.5 * i for i in range(16)]}
GEMMA = WIDE | {"query_pre_attn_scalar": 32}
DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
DEEPSEEK |= {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
ZOO: dict[str, Kind] = {
    "apertus": Kind("apertus", "gpt2", ONE),
    "arcee": Kind("arcee", "gpt2", WIDE),
    "biogpt": Kind("biogpt", "gpt2", SIZES),
    "bitnet": Kind("bitnet", "gpt2", ONE),
    "bloom": Kind("bloom", "gpt2", {"hidden_size": 64, "n_layer": 2, "n_head": 2}, "does not run packed"),
    "codegen": Kind("codegen", "gpt2", GPT | {"n_head": 4, "rotary_dim": 16}),
    "cohere": Kind("cohere", "qwen", ONE),
    "cohere2": Kind("cohere2", "qwen", ONE | {"sliding_window": 4096}),
    "deepseek_v3": Kind(
        "deepseek_v3", "qwen", SIZES | {"num_key_value_heads": 2, "moe_intermediate_size": 64} | DEEPSEEK
    ),
    "ernie4_5": Kind("ernie4_5", "qwen", WIDE),
    "exaone4": Kind("exaone4", "qwen", WIDE | {"sliding_window": 4096, "sliding_window_pattern": 2}),
    "falcon": Kind("falcon", "gpt2", SIZES),
    "falcon with alibi": Kind("falcon", "gpt2", SIZES | {"alibi": True}, "does not run packed"),
    "gemma": Kind("gemma", "gemma", WIDE),
    "gemma2": Kind("gemma2", "gemma", GEMMA | {"sliding_window": 4096}),
    "gemma3": Kind("gemma3_text", "gemma", GEMMA | {"sliding_window": 1024}),
    "gemma3 with a window of 64": Kind(
        "gemma3_text", "gemma", GEMMA | {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "gemma3 with vision": Kind("gemma3", "gemma", GEMMA | {"sliding_window": 1024}),
    "glm4": Kind("glm4", "qwen", WIDE | {"pad_token_id": 0}),
    "gpt2": Kind("gpt2", "gpt2", GPT),
    "gpt_bigcode": Kind("gpt_bigcode", "gpt2", GPT),
    "gpt_neo": Kind(
        "gpt_neo",
        "gpt2",
        {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
        "masks by a table of its own",
    ),
    "gpt_neox": Kind("gpt_neox", "gpt2", SIZES),
    "gpt_oss": Kind(
        "gpt_oss", "qwen", WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128}
    ),
    "gptj": Kind("gptj", "gpt2", GPT | {"rotary_dim": 16}),
    "granite": Kind("granite", "qwen", ONE | {"logits_scaling": 8.0, "attention_multiplier": 0.18}),
    "granitemoe": Kind(
        "granitemoe",
        "qwen",
        ONE | {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 6.0, "attention_multiplier": 0.18},
    ),
    "helium": Kind("helium", "gpt2", WIDE | {"pad_token_id": 0}),
    "hunyuan_v1_dense": Kind("hunyuan_v1_dense", "qwen", WIDE),
    "lfm2": Kind("lfm2", "qwen", ONE | {"layer_types": ["conv", "full_attention"]}, STATES),
    "llama": Kind("llama", "llama2", WIDE),
    "llama3, tied": Kind(
        "llama",
        "qwen",
        WIDE | {"tie_word_embeddings": True, "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 512}},
    ),
    "llama4": Kind(
        "llama4_text",
        "qwen",
        WIDE | {"intermediate_size_mlp": 128, "num_local_experts": 2, "attention_chunk_size": 8192},
        no_lora="does not run with LoRA adapters .* --lora-rank 0",
    ),
    "mamba": Kind("mamba", "gpt2", {"hidden_size": 64, "num_hidden_layers": 2}, STATES),
    "mamba2": Kind(
        "mamba2",
        "gpt2",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1},
        STATES,
    ),
    "minicpm3": Kind("minicpm3", "qwen", SIZES, scale=0.02),
    "mistral": Kind("mistral", "llama2", WIDE | {"sliding_window": None}),
    "mistral with a window of 64": Kind("mistral", "llama2", WIDE | {"sliding_window": 64}),
    "mixtral": Kind("mixtral", "llama2", WIDE | {"num_local_experts": 4, "sliding_window": None}),
    "mpt": Kind(
        "mpt", "gpt2", {"d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 1024}, "does not honour masks"
    ),
    "nemotron": Kind("nemotron", "gpt2", WIDE, scale=0.05),
    "olmo2": Kind("olmo2", "gpt2", ONE),
    "olmoe": Kind("olmoe", "gpt2", ONE | {"num_experts": 4, "num_experts_per_tok": 2}),
    "opt": Kind("opt", "gpt2", SIZES | {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 1024}),
    "opt with projections": Kind(
        "opt",
        "gpt2",
        SIZES
        | {"ffn_dim": 128, "word_embed_proj_dim": 32, "max_position_embeddings": 1024, "do_layer_norm_before": False},
    ),
    "phi": Kind("phi", "gpt2", SIZES),
    "phi3": Kind("phi3", "llama2", ONE | {"sliding_window": 2047, "pad_token_id": 0}),
    "phi3 with longrope": Kind(
        "phi3",
        "llama2",
        ONE
        | {"max_position_embeddings": 4096, "original_max_position_embeddings": 128, "pad_token_id": 0}
        | {"rope_parameters": LONG | {"original_max_position_embeddings": 128}},
    ),
    "qwen2, tied": Kind("qwen2", "qwen", ONE | {"tie_word_embeddings": True}),
    "qwen2, untied": Kind("qwen2", "qwen", ONE | {"tie_word_embeddings": False}),
    "qwen2 with more words than tokens": Kind("qwen2", "qwen", ONE | {"tie_word_embeddings": True, "vocab_size": 768}),
    "qwen2 with a window of 64": Kind(
        "qwen2", "qwen", ONE | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
    ),
    "qwen3": Kind("qwen3", "qwen", WIDE | {"tie_word_embeddings": True}),
    "qwen3_moe": Kind("qwen3_moe", "qwen", WIDE | EXPERTS | {"mlp_only_layers": [], "decoder_sparse_step": 1}),
    "qwen3_next": Kind(
        "qwen3_next",
        "qwen",
        WIDE
        | EXPERTS
        | LINEAR
        | {"shared_expert_intermediate_size": 64, "layer_types": ["linear_attention", "full_attention"]},
        STATES,
    ),
    "seed_oss": Kind("seed_oss", "qwen", WIDE),
    "smollm3": Kind("smollm3", "qwen", ONE | {"no_rope_layers": [1, 0], "pad_token_id": 0}),
    "stablelm": Kind("stablelm", "gpt2", ONE),
    "starcoder2": Kind("starcoder2", "gpt2", ONE | {"sliding_window": None}),
    "xglm": Kind(
        "xglm",
        "gpt2",
        {"d_model": 64, "num_layers": 2, "attention_heads": 2, "ffn_dim": 128, "max_position_embeddings": 1024},
    ),
}


def make(name: str, folder: Path, dtype: str = "float32", shard: str | None = None, **settings: Any) -> Path:
    """Write the model called ``name`` to ``folder``, in files of at most ``shard`` such as "100KB"."""
    kind, tokenizer = ZOO[name], tokenizer_of(ZOO[name].tokenizer)
    given = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    given |= kind.settings | settings
    config = _with_vision(given) if kind.type == "gemma3" else AutoConfig.for_model(kind.type, **given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += kind.scale * torch.randn_like(parameter)
            for key, buffer in model.named_buffers():
                if key.endswith("e_score_correction_bias"):  # zeros, which would hide that it is lost
                    buffer += torch.linspace(-0.2, 0.2, len(buffer))
    model.to(getattr(torch, dtype)).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    tokenizer.save_pretrained(str(folder))
    return folder


def _with_vision(text: dict[str, Any]) -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 5, "boi_token_index": 4, "eoi_token_index": 3, "mm_tokens_per_image": 4}
    return AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, **tokens)


@lru_cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the habits of ``kind``: `qwen`, `gpt2`, `llama2` or `gemma`."""
    if kind == "qwen":
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        ids = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
        return PreTrainedTokenizerFast(tokenizer_object=_byte_level(special), **ids)
    if kind == "gpt2":
        ids = dict.fromkeys(("eos_token", "bos_token", "unk_token"), "<|endoftext|>")
        return PreTrainedTokenizerFast(tokenizer_object=_byte_level(["<|endoftext|>"]), **ids)
    if kind == "llama2":
        ids = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        return PreTrainedTokenizerFast(tokenizer_object=_sentence_piece([*ids.values()], begins=True), **ids)
    ids = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=_sentence_piece([*ids.values()], begins=False), **ids)


def _byte_level(special: list[str]) -> Tokenizer:
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def _sentence_piece(special: list[str], begins: bool) -> Tokenizer:
    """BPE with bytes for what is unknown; ``begins``: a text begins with a space."""
    made: Any = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if begins else spaces
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if begins else [])])
    words = [text.replace(" ", "▁") for text in TEXTS]
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    made.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *single], show_progress=False)
    )
    written = json.loads(made.to_str())
    written["added_tokens"] = [one for one in written["added_tokens"] if not one["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(written))
