"""The tiny model: a byte-level tokenizer fitted to the catalogue and a small random Llama, as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rayrec.models.policy import write_model
from rayrec.models.settings import ModelConfig

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
HEAD_DIM = 32  # the smallest that vLLM's CPU attention takes


def make_tiny(titles: Iterable[str], config: ModelConfig, folder: str | Path, seed: int) -> None:
    """Write a tokenizer and a randomly initialised float32 Llama to ``folder``; equal arguments give equal bytes.

    ``titles`` come from the training split only; a title that is given n times weighs n times in the tokenizer.

    Raises:
        ValueError: the hidden size or the vocabulary does not suit the model.
    """
    if config.tiny_hidden % HEAD_DIM:
        raise ValueError(f"Found tiny_hidden {config.tiny_hidden}; it must be a multiple of {HEAD_DIM}, such as 128.")
    tokenizer = _tokenizer(titles, config.tiny_vocab)
    ids: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape = LlamaConfig(
        vocab_size=config.tiny_vocab,
        hidden_size=config.tiny_hidden,
        intermediate_size=3 * config.tiny_hidden,
        num_hidden_layers=config.tiny_layers,
        num_attention_heads=config.tiny_hidden // HEAD_DIM,
        num_key_value_heads=config.tiny_hidden // HEAD_DIM,
        head_dim=HEAD_DIM,
        max_position_embeddings=max(config.max_length, 512),
        tie_word_embeddings=True,
        dtype="float32",
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape)
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    shape.architectures = [type(model).__name__]  # as save_pretrained sets it, which would import DeepSpeed
    write_model(dict(model.named_parameters()), model, tokenizer, Path(folder))


def _tokenizer(titles: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [PAD, BOS, EOS]
    if vocabulary < len(alphabet) + len(special):
        raise ValueError(f"Found tiny_vocab {vocabulary}; the bytes alone need {len(alphabet) + len(special)}.")
    bpe = Tokenizer(models.BPE())
    # Without the regex a token may span words ("Part II"), which makes titles a quarter shorter.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(titles, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD)
