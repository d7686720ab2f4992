"""Settings of the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """The language model and how titles are put to it."""

    model: str = "tiny"
    """`tiny` (made and pre-trained here), or a Hugging Face folder or hub id."""
    template: Literal["auto", "chat", "instruct", "compact"] = "auto"
    """Prompt form; `auto` is `compact` for tiny, `chat` where the tokenizer has a chat template, else `instruct`."""
    lora_rank: int | None = None
    """LoRA rank on all linear layers, 0 trains every parameter. Default: 0 for tiny, else 16."""
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    """Dropout of the adapters in SFT; the preference step uses none."""
    item_vectors: bool = False
    """Prompts show each title's item as a SASRec knows it, its frozen vector mapped into the model's space by a network
    that the first SFT trains, at first in few of its batches (LLaRA). `--engine auto` takes one that reads them."""
    max_length: int = 512
    """Longest prompt plus answer, in tokens; a longer one is refused."""
    max_new_tokens: int | None = None
    """Longest generated title, in tokens. Default: those of the longest title."""
    tiny_hidden: int = 128
    tiny_layers: int = 3
    tiny_vocab: int = 4096
    pretrain_steps: int = 400
    """Steps of the tiny model's training from scratch."""
    pretrain_batch: int = 32
    pretrain_lr: float = 3e-3


@dataclass(frozen=True)
class SequentialConfig:
    """The sequential recommenders and how they are trained."""

    models: tuple[Literal["popular", "sasrec", "gru4rec", "caser", "morec"], ...] = (
        "popular",
        "sasrec",
        "gru4rec",
        "caser",
    )
    """What is trained and ranked; `morec` reads its item vectors from an embedder."""
    hidden: int = 128
    """Size of an item's vector."""
    dropout: float = 0.5
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch: int = 64
    """Pieces of sequences of an optimiser step, whatever the number of workers."""
    epochs: int = 56
    """Most epochs."""
    patience: int = 4
    """Epochs without a better validation NDCG@10, over the whole catalogue, after which training stops."""
    lr_drops: int = 1
    """Times that it first goes on from the best state instead, at a tenth of the learning rate."""
    sampled: int = 0
    """Wrong items in the loss, drawn for each step; 0: the whole catalogue."""
    top_k: tuple[int, ...] = (1, 5, 10)
    embedder: Literal["sentence", "lm"] = "sentence"
    """What embeds the titles for `morec`."""
    embedder_path: str | None = None
    """Folder of that embedder."""
