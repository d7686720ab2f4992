"""Phase after phase in one worker, and what it holds after each; called by worker_program.py.

``root/held.json`` has, by case, the engines that live and the bytes of all tensors after each of PHASES phases.
"""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.objectives.settings import make_objective
from rayrec.prompts import make_template
from rayrec.runs.storage import Storage
from rayrec.training.batches import Tokenise
from rayrec.training.board import Phase
from rayrec.training.worker import Worker
from tests.edge.worker_program import BATCH, LR, settings

PHASES = 6


def held() -> tuple[int, int]:
    """The engines that live, and the bytes of all tensors that Python knows."""
    import torch
    from deepspeed.runtime.engine import DeepSpeedEngine

    gc.collect()
    found = gc.get_objects()
    storages = [one.untyped_storage() for one in found if issubclass(type(one), torch.Tensor)]
    size = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    return sum(type(one) is DeepSpeedEngine for one in found), size


def one_step(table: pa.Table, begun: int) -> Iterator[pa.Table]:
    """The rows of a phase of one step."""
    return (table.slice(step * BATCH, BATCH) for step in range(begun, 1))


def hold(root: Path) -> None:
    """Run the phases of every case."""
    from rayrec.models.policy import load_tokenizer

    base, found = str(root / "base"), {}
    template = make_template("compact", load_tokenizer(base))
    tables = {kind: Tokenise(kind, template)(pq.read_table(root / "rows.parquet")) for kind in ("sft", "prefer")}
    kinds = [(4, "float32"), (0, "bfloat16")]  # adapters, and every weight with float32 copies
    for stage, (lora, dtype) in itertools.product((0, 1, 2, 3), kinds):
        config = settings(stage=stage, lora=lora, dtype=dtype)
        setup = {"config": config, "base": base, "gpu": False, "storage": Storage("")}
        worker = Worker(setup | {"objective": make_objective(config.loss)}, 0, 1)
        worker.report = lambda **facts: None
        start, states = base, []
        for number in range(PHASES):
            kind = ("sft", "prefer")[number % 2]
            out = root / f"{stage}-{lora}-{dtype}" / str(number) / "policy"
            phase = Phase(str(number), kind, "", start, str(out), 1, BATCH, LR, 0, 0.0, 1, "", "k")
            worker.run(phase, partial(one_step, tables[kind]))
            start = str(out)
            states.append(held())
        found[f"stage {stage}, rank {lora}, {dtype}"] = states
        del worker
    (root / "held.json").write_text(json.dumps(found))
