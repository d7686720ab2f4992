"""One training process of ``world``: SFT and preference phases under every ZeRO stage, started by test_worker.py."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.config import Config, parse
from rayrec.prompts import make_template
from rayrec.trainers import Phase, Tokenise

#: Kind of phase and objective, by the name of the case.
CASES = {"sft": ("sft", "dpo"), "sdpo": ("prefer", "sdpo"), "kto": ("prefer", "kto")}
STEPS, BATCH, LR, WARMUP = 3, 4, 3e-3, 1


def settings(objective: str = "dpo", stage: int = 1, lora: int = 0) -> Config:
    """A resolved configuration for direct use."""
    from rayrec.plan import resolve

    args = ["--objective", objective, "--zero-stage", str(stage), "--micro-batch", "2", "--lora-rank", str(lora)]
    config = resolve(parse("", args))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, max_new_tokens=48))


class Rows:
    """A worker's rows of every step, in the manner of a Ray Data shard."""

    def __init__(self, table: pa.Table, rank: int, world: int):
        self.table, self.rank, self.world = table, rank, world

    def iter_batches(self, batch_size: int, **_: object) -> Iterator[pa.Table]:
        for step in range(STEPS):
            yield self.table.slice(step * BATCH + self.rank * batch_size, batch_size)


def main(root: Path, rank: int, world: int) -> None:
    """Run every case and write its policy to ``root/out{world}/{case}-{stage}``."""
    import torch

    torch.set_num_threads(1)
    from rayrec.models.policy import load_tokenizer
    from rayrec.worker import Worker

    base = str(root / "base")
    template = make_template("compact", load_tokenizer(base))
    table = pq.read_table(root / "rows.parquet")
    for name, stage, lora in [(n, s, 0) for n in CASES for s in (1, 2, 3)] + [("sdpo", 1, 4), ("sdpo", 2, 4)]:
        kind, objective = CASES[name]
        setup = {"config": settings(objective, stage, lora), "base": base, "gpu": False}
        worker = Worker(setup, rank, world)
        worker.report = lambda **facts: None
        out = root / f"out{world}" / f"{name}-{stage}{'-lora' if lora else ''}"
        phase = Phase(name, kind, "", base, str(out), STEPS, BATCH, LR, WARMUP, 0.0, 1)
        worker.run(phase, Rows(Tokenise(kind, template)(table), rank, world))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
