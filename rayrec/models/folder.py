"""A model's folder or hub id, by its files and its configuration alone: sizes, the local folder, a hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from rayrec.models.settings import ModelConfig


def _settings(path: str | Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(path), trust_remote_code=False)


def vocabulary(path: str | Path) -> int:
    """Return the vocabulary size: the number of tokens that a model embeds."""
    return int(_settings(path).get_text_config().vocab_size)


def cache_size(path: str | Path) -> int:
    """Return the numbers that a token leaves in a model's key-value cache, by its configuration alone."""
    text = _settings(path).get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_size(path)


def head_size(path: str | Path) -> int:
    """Return the head dimension of a model's attention."""
    return head_size_of(_settings(path).get_text_config())


def head_size_of(text: Any) -> int:
    """Return the same from a model's settings for text."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def reach(settings: Any) -> tuple[int | None, str]:
    """Return how many tokens a model sees as plain causal attention sees them, and the setting that says so.

    A longer sequence needs an attention window, or other rotary embeddings, which a row of several answers does not
    have. None: no setting says so.
    """
    text = settings.get_text_config()
    found: dict[str, int | None] = {"max_position_embeddings": getattr(text, "max_position_embeddings", None)}
    if set(getattr(text, "layer_types", None) or ["?"]) != {"full_attention"}:  # some models have windows and no types
        found |= {name: getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")}
    rope = getattr(text, "rope_parameters", None) or {}
    for one in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if one.get("rope_type") in ("longrope", "dynamic"):  # chosen by the longest sequence of a batch
            found["original_max_position_embeddings"] = one.get("original_max_position_embeddings")
    limits = [(value, name) for name, value in found.items() if value]
    return min(limits) if limits else (None, "")


def architecture(path: str | Path) -> str:
    """Return the name of a model's class, empty where its settings have none."""
    return next(iter(getattr(_settings(path), "architectures", None) or []), "")


def experts(path: str | Path) -> int:
    """Return the number of experts of a layer, 0 for a model without them."""
    text = _settings(path).get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return max(int(getattr(text, name, None) or 0) for name in names)


def context_length(config: ModelConfig, path: str | Path) -> int:
    """Return the longest prompt plus answer in tokens, ``max_length``; ValueError where the model sees fewer."""
    limit, name = reach(_settings(path))
    if limit and config.max_length > limit:
        raise ValueError(
            f"Found max_length {config.max_length}; {path} sees {limit} tokens ({name}). Set --max-length {limit}."
        )
    return config.max_length


def local_folder(path: str | Path) -> Path:
    """Return the folder itself, or where the weights and settings of a hub id lie on this machine."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path), allow_patterns=["*.safetensors", "*.json"]))


def folder_hash(model: str) -> str:
    """sha256 of the files of a model folder that are read; for a hub id the commit."""
    if not Path(model).is_dir():
        return str(getattr(_settings(model), "_commit_hash", None))
    sha = hashlib.sha256()
    kinds = (".safetensors", ".json", ".model", ".txt", ".jinja")
    for path in sorted(p for p in Path(model).rglob("*") if p.suffix in kinds):
        with path.open("rb") as file:
            sha.update(str(path.relative_to(model)).encode() + hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()
