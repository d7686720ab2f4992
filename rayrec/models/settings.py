"""Settings of the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from rayrec.fields import NOT_NEGATIVE, POSITIVE, SHARE, one_of, some_of
from rayrec.grounding import EMBEDDERS
from rayrec.models.fitting import HIDDEN, Fitting


@dataclass(frozen=True)
class ModelConfig:
    """The language model and how titles are put to it."""

    model: str = "tiny"
    """`tiny` (made and pre-trained here), a Hugging Face folder or hub id, or a GGUF file."""
    template: Literal["auto", "chat", "instruct", "compact"] = "auto"
    """Prompt form; `auto` is `compact` for tiny, `chat` where the tokenizer has a chat template, else `instruct`."""
    lora_rank: Annotated[int | None, NOT_NEGATIVE] = None
    """LoRA rank on all linear layers, 0 trains every parameter. Default: 0 for tiny, else 16."""
    lora_alpha: Annotated[int, POSITIVE] = 32
    lora_dropout: Annotated[float, SHARE] = 0.05
    """Dropout of the adapters in SFT; the preference step uses none."""
    item_vectors: bool = False
    """Prompts show each title's item as a SASRec knows it, its frozen vector mapped into the model's space by a network
    that the first SFT trains, at first in few of its batches (LLaRA). `--engine auto` takes one that reads them."""
    max_length: Annotated[int, POSITIVE] = 512
    """Longest prompt plus answer, in tokens; --long-prompts decides what happens to longer ones."""
    max_new_tokens: Annotated[int | None, POSITIVE] = None
    """Longest generated title, in tokens. Default: those of the longest title, at most half of --max-length."""
    tiny_hidden: Annotated[int, POSITIVE] = 128
    tiny_layers: Annotated[int, POSITIVE] = 3
    tiny_vocab: int = 4096
    pretrain_steps: Annotated[int, POSITIVE] = 400
    """Steps of the tiny model's training from scratch."""
    pretrain_batch: Annotated[int, POSITIVE] = 32
    pretrain_lr: Annotated[float, POSITIVE] = 3e-3


def _models() -> tuple[str, ...]:
    from rayrec.models.sequential import SEQUENTIAL  # imports torch

    return ("popular", *SEQUENTIAL)


_MODELS, _EMBEDDER = some_of(_models), one_of(lambda: [name for name in EMBEDDERS if name != "title"])


@dataclass(frozen=True)
class SequentialConfig(Fitting):
    """The sequential recommenders and how jobs/baselines.py trains them: in smaller steps and with a drop of the
    learning rate, which takes longer than the published way and ranks better."""

    models: Annotated[tuple[str, ...], _MODELS] = ("popular", "sasrec", "gru4rec", "caser")
    """Models that are trained and ranked; `morec` reads its item vectors from an embedder."""
    hidden: Annotated[int, POSITIVE] = 2 * HIDDEN
    """Size of an item's vector."""
    dropout: Annotated[float, SHARE] = 0.5
    batch: Annotated[int, POSITIVE] = 64
    """Pieces of sequences of an optimiser step, whatever the number of workers."""
    epochs: Annotated[int, POSITIVE] = 56
    """Most epochs."""
    patience: Annotated[int, POSITIVE] = 4
    """Epochs without a better validation NDCG@10, over the whole catalogue, after which training stops."""
    lr_drops: Annotated[int, NOT_NEGATIVE] = 1
    """Times that it first goes on from the best state instead, at a tenth of the learning rate."""
    top_k: tuple[int, ...] = (1, 5, 10)
    embedder: Annotated[str, _EMBEDDER] = "sentence"
    """Embedder of the titles for `morec`."""
    embedder_path: str | None = None
    """Folder of that embedder."""
