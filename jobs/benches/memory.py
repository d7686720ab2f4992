"""The memory of a training worker, as the plan states it ("ours") and measured ("theirs"), in MB.

Measured is the peak RSS, libraries included, of a process of its own that trains a phase of two steps, and whose
allocator is set as that of a run's workers. Prompts of 150 to 200 tokens, titles of 6 to 12. The tiny model computes 64
rows at once, the real one as many of 4 as the default of --pass-memory lets it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benches import peak
from benches.training import Example, shard, table_of

PACKAGES, SIZE, COLUMNS, UNIT = ("deepspeed",), "k", ("name", "weights", "again"), "MB"
FACTS, PAIRS = ("rows",), ("rows",)
KINDS = [("sft", 0), ("prefer", 1), ("prefer", 3), ("prefer", 8)]
ROWS, STEPS = {"tiny": 64, "real": 4}, 2


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    from rayrec.models.gguf import folder_of
    from rayrec.models.settings import ModelConfig
    from rayrec.models.tiny import make_tiny

    make_tiny([f"The Return of Number {i}" for i in range(99)], ModelConfig(tiny_vocab=512), scratch / "tiny", 0)
    models = {"tiny": str(scratch / "tiny")} | ({} if args.quick else {"real": folder_of(args.model)})
    found = [
        {"name": name, "weights": weights, "again": again, "k": k, "kind": kind, "dtype": dtype, "base": base}
        for name, base in models.items()
        for weights in ("lora", "full")
        for dtype in ("float32", "bfloat16")
        for again in (False, True)
        for kind, k in KINDS
    ]
    return [(setting, ["measured"]) for setting in (found[1:2] if args.quick else found)]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != "base"}


@dataclass
class Worked:
    """A worker's settings and rows."""

    base: str
    kind: Any
    config: Any
    examples: list[Example]


def measure(
    contender: str, name: str, weights: str, again: bool, k: int, kind: str, dtype: str, base: str
) -> dict[str, Any]:
    """MB, told or measured, and the rows of the largest pass."""
    from rayrec.driver.checks import resolve
    from rayrec.methods import parse

    rows, rank = ROWS[name], "16" if weights == "lora" else "0"
    args = ["--model", base, "--dtype", dtype, "--lora-rank", rank, "--micro-batch", str(rows), "--objective", "dpo"]
    args += ["--lora-dropout", "0.05" if kind == "sft" else "0", "--checkpoint-seconds", "0", "--checkpoint-steps", "0"]
    config = resolve(parse("", [*args, *(["--activation-checkpointing"] if again else [])]))
    draw = random.Random(0)
    tokens = [[draw.randrange(500) for _ in range(draw.randint(150, 200))] for _ in range(STEPS * rows)]
    titles = [[[draw.randrange(500) for _ in range(draw.randint(6, 12))] for _ in range(1 + k)] for _ in tokens]
    worked = Worked(base, kind, config, list(zip(tokens, titles, strict=True)))
    if contender == "ours":
        return told(worked)
    from rayrec.training.memory import HEAP

    os.environ |= HEAP
    context = multiprocessing.get_context("spawn")
    results: Any = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        worker = context.Process(target=work, args=(worked, folder, results), daemon=True)
        worker.start()
        worker.join()
    if worker.exitcode:
        raise RuntimeError(f"the training worker ended with {worker.exitcode}")
    return results.get()


def told(worked: Worked) -> dict[str, Any]:
    """By the memory model."""
    from rayrec.models.shape import Shape
    from rayrec.training.memory import LIBRARIES, Memory, cuts

    of = Memory(Shape.of(worked.base), worked.config, gpu=False)
    sizes = [(len(prompt) + sum(map(len, titles)), sum(map(len, titles))) for prompt, titles in worked.examples]
    size = len(sizes) // STEPS
    steps = [sorted(sizes[a : a + size]) for a in range(0, len(sizes), size)]
    parts = [rows[a:b] for rows in steps for a, b in cuts(size, of.passes(rows))]
    passes = [of.pass_bytes(part) for part in parts]
    return {"rate": (of.held_bytes(max(passes)) + LIBRARIES) / 1e6, "rows": max(map(len, parts))}


def work(worked: Worked, folder: str, results: Any) -> None:
    """A training worker's phase."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    import ray.train  # noqa: F401  # as the workers of a run do
    import torch

    from rayrec.objectives.settings import make_objective
    from rayrec.runs.storage import Storage
    from rayrec.training.board import Phase
    from rayrec.training.worker import Worker

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    config, examples = worked.config, worked.examples
    size = len(examples) // STEPS
    table = table_of(examples, size)
    setup = {"config": config, "base": worked.base, "gpu": False, "storage": Storage("")}
    worker = Worker(setup | {"objective": make_objective(config.loss)}, 0, 1)
    worker.report = lambda **facts: None
    dropout = config.model.lora_dropout if worked.kind == "sft" else 0.0
    phase = Phase("one", worked.kind, "", worked.base, f"{folder}/policy", STEPS, size, 1e-4, 0, dropout, 1)
    worker.run(phase, partial(shard, table, size, STEPS))
    results.put({"rate": peak() / 1e6, "rows": None})
    torch.distributed.destroy_process_group()
