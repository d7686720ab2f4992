"""GB of a training and a generating card and seconds of an iteration, on one card, two cards and a node of eight.

    python jobs/cards.py                 # the table of docs/cluster.md
    python jobs/cards.py --card A100

Estimated and not measured, from the memory and the cost model of `--dry-run --cluster` (rayrec/training/memory.py,
rayrec/driver/cost_model.py): an iteration of `--preset paper` on rows of 170 tokens and titles of 10. Nothing is
downloaded: of a model its sizes are enough.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from typing import Any

#: Sizes of the models; all have heads of `head_dim` and eight heads of keys and values.
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {"hidden": 2048, "mlp": 8192, "layers": 16, "heads": 32, "head_dim": 64, "tied": True},
    "Llama-3.2-3B": {"hidden": 3072, "mlp": 8192, "layers": 28, "heads": 24, "head_dim": 128, "tied": True},
    "Llama-3.1-8B": {"hidden": 4096, "mlp": 14336, "layers": 32, "heads": 32, "head_dim": 128, "tied": False},
}
#: Tokens of a prompt and of an answer, the most of an answer, and validation rows.
PROMPT, ANSWER, LONGEST, VALID = 170, 10, 24, 256
#: What is trained, and the placements: their names and the flags that make them.
TRAINED = {"adapters of rank 16": ["--lora-rank", "16"], "all weights": ["--lora-rank", "0"]}
PLACED = {
    "1 card, shared": ["--train-workers", "1", "--generators", "1", "--placement", "shared"],
    "2 cards, 1 + 1": ["--train-workers", "1", "--generators", "1"],
    "8 cards, 4 + 4": ["--train-workers", "4", "--generators", "4"],
}


def shape_of(sizes: dict[str, Any]) -> Any:
    """The shape of a Llama of these sizes."""
    from transformers import LlamaConfig

    from rayrec.models.shape import Shape

    names = {"hidden_size": "hidden", "intermediate_size": "mlp", "num_hidden_layers": "layers"}
    names |= {"num_attention_heads": "heads", "head_dim": "head_dim", "tie_word_embeddings": "tied"}
    found = {name: sizes[own] for name, own in names.items()}
    with tempfile.TemporaryDirectory() as folder:
        LlamaConfig(vocab_size=128256, num_key_value_heads=8, **found).save_pretrained(folder)
        return Shape.of(folder)


def cell(shape: Any, data: Any, card: str, flags: list[str]) -> str:
    """GB of the two cards, or of the one, and seconds of an iteration; or that it does not fit, with its GB."""
    from rayrec.driver import checks, cost_model, plan
    from rayrec.driver.checks import Lengths
    from rayrec.methods import parse

    words = ["--preset", "paper", "--decode", "greedy", "--dry-run", "--cluster", f"1x8x{card}", *flags]
    tokens, smallest = Lengths(PROMPT, ANSWER, LONGEST, 0), ""
    for stage in (None, 3):
        config = checks.resolve(parse("", words), gpu=True)
        if stage is not None:
            config = dataclasses.replace(config, train=dataclasses.replace(config.train, zero_stage=stage))
        found = cost_model.estimate(config, plan.phases(config, data), tokens, shape, VALID)
        needs = [found["memory"][name] for name in ("trainer", "generator")]
        shared = config.placement.placement == "shared"
        needs, there = [sum(needs)] if shared else needs, found["memory"]["there"]
        told = " + ".join(f"{one / 1e9:.0f}" for one in needs)
        if max(needs) <= there:
            return f"{told} GB, {found['iteration']:.0f} s" + (f" (stage {stage})" if stage else "")
        smallest = smallest or told
        if config.placement.train_workers == 1 or config.model.lora_rank:
            break
    return f"does not fit ({smallest} GB)"


def table(card: str) -> Iterator[str]:
    """The lines of the table."""
    from rayrec.config import DataConfig
    from rayrec.data import load

    data = load(DataConfig())
    yield f"| model | trained | {' | '.join(PLACED)} |"
    yield "|---|---|" + "---|" * len(PLACED)
    for name, sizes in MODELS.items():
        shape = shape_of(sizes)
        for trained, flags in TRAINED.items():
            cells = (cell(shape, data, card, [*flags, *more]) for more in PLACED.values())
            yield f"| {name} | {trained} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="H100", help="a kind of --cluster")
    for line in table(parser.parse_args().card):
        print(line)


if __name__ == "__main__":
    main()
