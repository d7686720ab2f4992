"""The shape of a model, from its folder's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal LM."""

    blocks: int
    """Weights without the words' embeddings."""
    words: int
    """Weights of the words' embeddings; ``tied``: the head's are the same."""
    tied: bool
    layers: int
    hidden: int
    queries: int
    """Numbers of a token's queries in a layer."""
    kv: int
    """Numbers that a token leaves in the key-value cache."""
    last_mlp: int
    """Weights of the last block's MLP, which prompts pass by (logprobs.py)."""
    adapters: int
    """Weights of adapters of rank 1 on all linear layers but the head."""

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.blocks + self.words * (1 if self.tied else 2)

    @property
    def mlp(self) -> int:
        """Width of the MLP, as that of a gated one with as many weights."""
        return (self.last_mlp or 8 * self.hidden**2) // 3 // self.hidden

    @classmethod
    def of(cls, model: str) -> Shape:
        """Read from the configuration of a folder or hub id alone."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from rayrec.models.folder import cache_size, head_size
        from rayrec.models.logprobs import last_mlp

        settings: Any = AutoConfig.from_pretrained(model, trust_remote_code=False)
        with torch.device("meta"):
            lm: Any = AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
        head, words = lm.get_output_embeddings(), lm.get_input_embeddings().weight
        linear = [m for m in lm.modules() if type(m).__name__ in ("Linear", "Conv1D") and m is not head]
        text = settings.get_text_config()
        total, tied = sum(p.numel() for p in lm.parameters()), head.weight is words
        return cls(
            blocks=total - words.numel() * (1 if tied else 2),
            words=words.numel(),
            tied=tied,
            layers=text.num_hidden_layers,
            hidden=words.shape[1],
            queries=text.num_attention_heads * head_size(model),
            last_mlp=sum(p.numel() for p in mlp.parameters()) if (mlp := last_mlp(lm)) is not None else 0,
            kv=cache_size(model),
            adapters=sum(sum(m.weight.shape) for m in linear),
        )
