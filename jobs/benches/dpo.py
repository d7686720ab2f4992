"""TRL's DPOTrainer on examples of ours: a chosen-rejected pair for each rejected answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benches.training import Example

#: Settings of TRL's trainers that leave the steps alone: no files, no reports, AdamW at a constant rate, all rows once.
PLAIN: dict[str, Any] = {
    "gradient_checkpointing": False,
    "num_train_epochs": 1,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": None,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "train_sampling_strategy": "sequential",
    "optim": "adamw_torch",
}


def dpo_trainer(
    examples: list[Example],
    text: Callable[[list[int]], str],
    batch: int,
    folder: str,
    settings: dict[str, Any],
    **of: Any,
) -> tuple[Any, list[float]]:
    """Return a trainer with steps of ``batch`` examples, and the list to which it adds the reference pass's seconds.

    ``text`` writes the tokens of a prompt or answer without its EOS; ``of`` is the trainer's model, tokenizer and rest.
    """
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    pairs = [
        {"prompt": text(prompt), "chosen": text(answers[0]), "rejected": text(rejected)}
        for prompt, answers in examples
        for rejected in answers[1:]
    ]
    passes = batch * (len(examples[0][1]) - 1) // settings["per_device_train_batch_size"]
    config = DPOConfig(**PLAIN | settings, output_dir=folder, gradient_accumulation_steps=passes)
    spent: list[float] = []

    class Timed(DPOTrainer):
        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return super()._precompute_ref_logps(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - begun)

    return Timed(args=config, train_dataset=Dataset.from_list(pairs), **of), spent


def words(ids: list[int]) -> str:
    """Return the text of tokens by a tokenizer of one word per token, whose EOS is 2."""
    return "".join(f" w{i}" for i in ids if i != 2)
