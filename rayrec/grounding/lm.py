"""The ``lm`` embedder: the base language model's hidden state of a bare title (BIGRec section 3.2)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class LanguageModelEmbedder:
    """Hidden state of a title's last token after the final norm of a Hugging Face causal language model.

    The model has float32 safetensors weights and is on the CPU. Titles are padded on the left, and the tokenizer's own
    special tokens are kept. ValueError: ``path`` is no folder of such a model.
    """

    def __init__(self, path: str | Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"Found no config.json in {path}, wanted the folder of a Hugging Face language model.")
        options = {"use_safetensors": True, "dtype": torch.float32}
        try:
            # The decoder below the head: its last_hidden_state is after the final norm, and no logits are computed.
            model: Any = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, **options)
            self._decoder: Any = model.eval().base_model
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a Hugging Face language model: {error}") from error
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Return (n, H) float32."""
        parts = [torch.empty(0, self._decoder.config.hidden_size)]
        for start in range(0, len(texts), 64):
            rows = self._tokenizer(list(texts[start : start + 64]))["input_ids"]
            length = max(map(len, rows))
            ids_BT = torch.tensor([[0] * (length - len(row)) + row for row in rows])
            mask_BT = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
            place_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
            states_BTH = self._decoder(ids_BT, attention_mask=mask_BT, position_ids=place_BT).last_hidden_state
            parts.append(states_BTH[:, -1].float())
        return torch.cat(parts)

    def exact(self, text: str) -> None:
        """Look for no exact match: BIGRec goes by distance alone."""
