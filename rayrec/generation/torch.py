"""transformers as an engine, for machines that vLLM does not support."""

from __future__ import annotations

from typing import Any

from rayrec.generation.engine import Mode, Setup
from rayrec.lanes import BASE


class TorchEngine:
    """transformers in the same actor, for machines that vLLM does not support."""

    def __init__(self, setup: Setup):
        import torch

        from rayrec.models import policy

        torch.set_num_threads(setup.threads)
        model = setup.config.model
        self.device = "cuda" if setup.gpu else "cpu"
        self.template, self.max_new = setup.template, model.max_new_tokens or model.max_length
        self.model: Any = policy.load_base(setup.base, dtype=setup.config.train.dtype, device=self.device)
        if model.lora_rank:
            self.model = policy.add_lora(self.model, model.lora_rank, model.lora_alpha, 0.0)
        self.initial = policy.trainable_state(self.model)
        self.model.eval()

    def load(self, version: str, folder: str) -> None:
        """Load a finished policy's weights in place."""
        from rayrec.models import policy

        if version == BASE:
            policy.copy_weights(self.model, self.initial)
        else:
            policy.load_weights(self.model, folder)

    def answer(self, prompts: list[list[int]], mode: Mode, n: int, seed: int) -> list[list[tuple[list[int], float]]]:
        from rayrec.decoding import generate

        kind: Any = {"free_beams": "beam"}.get(mode, mode)
        length = {"max_new_tokens": self.max_new, "mode": kind, "n": n, "seed": seed}
        made = generate(self.model, prompts, self.template.eos_id, **length)
        return [[(list(g.token_ids), g.logprob) for g in one] for one in made]

    def sleep(self) -> None:
        self.model.to("cpu")

    def wake(self) -> None:
        self.model.to(self.device)
