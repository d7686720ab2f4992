"""The ``lm`` embedder: the base language model's hidden state of a bare title (BIGRec section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch


class LanguageModelEmbedder:
    """Hidden state of the last token after the model's final norm, from the bare title, adapters switched off.

    Titles are padded on the left. The model must not change while it is used: equality, and so the catalogue's cached
    vectors, goes by the object.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one.
        tokenizer: its tokenizer; its own special tokens (such as BOS) are kept.
        batch: texts per forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int = 64) -> None:
        self.model, self.tokenizer, self.batch = model, tokenizer, batch

    @classmethod
    def from_folder(cls, path: str | Path) -> LanguageModelEmbedder:
        """Open a Hugging Face causal language model, in float32 on the CPU.

        Raises ValueError: ``path`` is no folder of such a model with safetensors weights.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"Found no config.json in {path}, wanted the folder of a Hugging Face language model.")
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a Hugging Face language model: {error}") from error
        return cls(model.eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=False))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Return (n, H) float32 on the CPU."""
        bare = self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext()
        was_training = self.model.training
        self.model.eval()
        with bare:
            parts = [self._states(texts[i : i + self.batch]) for i in range(0, len(texts), self.batch)]
        self.model.train(was_training)
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.hidden_size)

    def exact(self, text: str) -> None:
        """Look for no exact match: BIGRec goes by distance alone."""

    def _states(self, texts: Sequence[str]) -> torch.Tensor:
        rows = self.tokenizer(list(texts))["input_ids"]
        length = max(map(len, rows))
        ids_BT = torch.tensor([[0] * (length - len(row)) + row for row in rows])
        mask_BT = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        inputs = {
            "input_ids": ids_BT,
            "attention_mask": mask_BT,
            "position_ids": (mask_BT.cumsum(dim=1) - 1).clamp(min=0),
        }
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        # The decoder below the head: its last_hidden_state is after the final norm, and no logits are computed.
        states_BTH = model.base_model(**{k: v.to(model.device) for k, v in inputs.items()}).last_hidden_state
        return states_BTH[:, -1].float().cpu()
