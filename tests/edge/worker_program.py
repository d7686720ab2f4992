"""One training process of ``world``: SFT and preference phases under every ZeRO stage, started by test_worker.py.

Some of them are cut off after their last step but one, and go on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.config import Config, parse
from rayrec.prompts import make_template
from rayrec.trainers import Phase, Tokenise

#: Kind of phase and objective, by the name of the case.
CASES = {"sft": ("sft", "dpo"), "sdpo": ("prefer", "sdpo"), "kto": ("prefer", "kto")}
STEPS, BATCH, LR, WARMUP = 3, 4, 3e-3, 1
#: Case, ZeRO stage and rank of the adapters, of what is cut off.
CUT_OFF = [("sft", 0, 0), ("sft", 1, 0), ("sdpo", 2, 0), ("sdpo", 3, 0), ("sft", 1, 4)]


def settings(objective: str = "dpo", stage: int = 1, lora: int = 0) -> Config:
    """A resolved configuration for direct use."""
    from rayrec.plan import resolve

    args = ["--objective", objective, "--zero-stage", str(stage), "--micro-batch", "2", "--lora-rank", str(lora)]
    config = resolve(parse("", [*args, "--checkpoint-steps", str(STEPS - 1)]))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, max_new_tokens=48))


def name_of(case: str, stage: int, lora: int) -> str:
    """Name of the folder of one case."""
    return f"{case}-{stage}{'-lora' if lora else ''}"


class CutOff(Exception):
    """The end of a process in the middle of a phase."""


def cut_off(**beat: object) -> None:
    """Hear of the last step and die before anything is saved."""
    if beat["step"] == STEPS:
        raise CutOff


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

    def train(case: str, stage: int, lora: int, out: Path, report: Any = lambda **facts: None) -> dict:
        kind, objective = CASES[case]
        worker = Worker({"config": settings(objective, stage, lora), "base": base, "gpu": False}, rank, world)
        worker.report = report
        dropout = 0.1 if lora and kind == "sft" else 0.0
        phase = Phase(case, kind, "", base, str(out / "policy"), STEPS, BATCH, LR, WARMUP, dropout, 1, "k")
        return worker.run(phase, Rows(Tokenise(kind, template)(table), rank, world))

    whole = [(n, s, 0) for n in CASES for s in (1, 2, 3)] + [
        ("sdpo", 1, 4),
        ("sdpo", 2, 4),
        ("sft", 1, 4),
        ("sft", 0, 0),
    ]
    for case in whole:
        train(*case, root / f"out{world}" / name_of(*case))
    for case in CUT_OFF:
        folder = root / f"cut{world}" / name_of(*case)
        with contextlib.suppress(CutOff):
            train(*case, folder, cut_off)
            raise AssertionError("a phase that was cut off has ended")
        if world == 1:  # the other number of workers goes on from it too
            shutil.copytree(folder, root / "moved" / name_of(*case))
        assert train(*case, folder)["facts"]["resumed_at"] == STEPS - 1
        if world == 2:
            assert train(*case, root / "moved" / name_of(*case))["facts"]["resumed_at"] == STEPS - 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
