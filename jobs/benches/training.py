"""A training worker of a run, alone and without Ray, for benches of its steps."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from benches import peak, reset_peak

#: An example: the tokens of the prompt and of its answers, the chosen one first.
Example = tuple[list[int], list[list[int]]]


def worker_steps(
    base: str, args: list[str], kind: Literal["sft", "prefer"], data: list[Example], batch: int, lr: float
) -> dict[str, Any]:
    """Train a second phase on ``data`` in steps of ``batch`` examples, after a first phase of one step.

    Returns ``seconds`` from the loading of the start to the last step, peak ``memory`` and ``memory_above`` the loaded
    model's in bytes, ``tokens``, ``losses``, and the ``flops`` of the first phase's one step.
    """
    import pyarrow as pa
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rayrec.driver.checks import resolve
    from rayrec.methods import parse
    from rayrec.objectives.settings import make_objective
    from rayrec.runs.storage import Storage
    from rayrec.training.board import Phase
    from rayrec.training.worker import Worker

    steps, ids = len(data) // batch, pa.list_(pa.int32())
    columns = {"prompt": pa.array([prompt for prompt, _ in data], ids)}
    columns |= {"answers": pa.array([titles for _, titles in data], pa.list_(ids))}
    columns |= {"example_id": pa.array(map(str, range(len(data)))), "weight": pa.array([1.0] * len(data))}
    columns |= {"step": pa.array(i // batch for i in range(len(data)))}
    columns |= {"slot": pa.array(i % batch for i in range(len(data)))}
    table = pa.table(columns | {name: pa.nulls(len(data)) for name in ("neighbour", "scores", "smoothing")})

    def shard(steps: int, begun: int) -> Iterator[pa.Table]:
        return (table.slice(step * batch, batch) for step in range(begun, steps))

    class Timed(Worker):
        def report(self, **_: Any) -> None:
            times.append(time.perf_counter())

    times: list[float] = []
    unbroken = ["--checkpoint-steps", "0", "--checkpoint-seconds", "0"]
    config = resolve(parse("", [*args, *unbroken]))
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        setup = {"config": config, "base": base, "gpu": False, "storage": Storage("")}
        worker = Timed(setup | {"objective": make_objective(config.loss)}, 0, 1)
        dropout = config.model.lora_dropout if kind == "sft" and config.model.lora_rank else 0.0
        place, threads = f"{folder}/first", torch.get_num_threads()
        phase = Phase("first", kind, "", base, place, 1, batch, lr, 0, dropout, threads, schedule="constant")
        before = reset_peak()
        with FlopCounterMode(display=False) as counted:
            worker.run(phase, partial(shard, 1))
        times.clear()
        reset_peak()
        done = worker.run(replace(phase, name="second", out=f"{folder}/second", steps=steps), partial(shard, steps))
        most = peak()
    torch.distributed.destroy_process_group()
    return {
        "seconds": times[-1] - times[0],
        "memory": most,
        "memory_above": most - before,
        "tokens": done["facts"]["tokens"],
        "losses": [step["loss"] for step in done["steps"]],
        "flops": counted.get_total_flops(),
    }
