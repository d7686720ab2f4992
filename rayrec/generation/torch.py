"""transformers as an engine, for machines that vLLM does not support."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayrec.generation.engine import Engine, Part, Scored, Setup, move, set_threads

if TYPE_CHECKING:
    from rayrec.models.proof import Probe


class TorchEngine(Engine):
    """transformers in the actor's own process."""

    modes = frozenset({"greedy", "sample", "free_beams"})
    reads_item_vectors = True
    opens_plainly = True

    def __init__(self, setup: Setup):
        from rayrec.models import adapters, policy

        self.threads = setup.threads
        set_threads(self.threads)
        model = setup.config.model
        self.device = "cuda" if setup.gpu else "cpu"
        self.template, self.max_new = setup.template, model.max_new_tokens or model.max_length
        self.model: Any = policy.load_base(setup.base, dtype=setup.config.train.precision, device=self.device)
        if model.lora_rank:
            self.model = policy.add_lora(self.model, model.lora_rank, model.lora_alpha, 0.0)
        if setup.gpu:
            adapters.lighten(self.model, fused=True)
        self.initial = policy.trainable_state(self.model)
        policy.copy_weights(self.model, self.initial)
        self.model.eval()

    def load(self, version: str, folder: str) -> None:
        from rayrec.lanes import BASE
        from rayrec.models import policy

        if version == BASE:
            policy.copy_weights(self.model, self.initial)
        else:
            policy.load_weights(self.model, folder)

    def answer(self, part: Part) -> list[list[Scored]]:
        from rayrec.decoding import generate

        set_threads(part.threads or self.threads)
        mode: Any = {"free_beams": "beam"}.get(part.mode, part.mode)
        lengths = {"max_new_tokens": self.max_new, "mode": mode, "n": part.n, "seed": part.seed}
        made = generate(self.model, part.prompts, self.template.eos_id, **lengths)
        return [[(list(one.token_ids), one.logprob) for one in answers] for answers in made]

    def state(self, probe: Probe) -> dict[str, Any] | None:
        from rayrec.models import proof

        return proof.model_statement(self.model, probe)

    def sleep(self) -> None:
        move(self.model, "cpu")

    def wake(self) -> None:
        move(self.model, self.device)
