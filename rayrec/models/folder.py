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
    text = _settings(path).get_text_config()
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def context_length(config: ModelConfig, path: str | Path) -> int:
    """Return the longest prompt plus answer in tokens, ``max_length``; ValueError where the model sees fewer."""
    limit = getattr(_settings(path), "max_position_embeddings", None)
    if limit and config.max_length > limit:
        raise ValueError(f"Found max_length {config.max_length}; {path} sees {limit} tokens. Set --max-length {limit}.")
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
