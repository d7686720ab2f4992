"""A training worker of a run, alone and without Ray, for benches of its steps."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from benches import peak, reset_peak

#: An example: the tokens of the prompt and of its answers, the chosen one first.
Example = tuple[list[int], list[list[int]]]


def table_of(data: list[Example], batch: int, **columns: list) -> Any:
    """The rows as a training worker reads them, in steps of ``batch``; ``columns`` are those that a loss reads."""
    import pyarrow as pa

    ids = pa.list_(pa.int32())
    made = {"prompt": pa.array([prompt for prompt, _ in data], ids)}
    made |= {"answers": pa.array([titles for _, titles in data], pa.list_(ids))}
    made |= {"example_id": pa.array(map(str, range(len(data)))), "weight": pa.array([1.0] * len(data))}
    made |= {"step": pa.array(i // batch for i in range(len(data)))}
    made |= {"slot": pa.array(i % batch for i in range(len(data)))}
    made |= {name: pa.nulls(len(data)) for name in ("neighbour", "scores", "smoothing")}
    return pa.table(made | {name: pa.array(values) for name, values in columns.items()})


def shard(table: Any, batch: int, steps: int, begun: int) -> Iterator[Any]:
    """The rows of each step."""
    return (table.slice(step * batch, batch) for step in range(begun, steps))


@contextmanager
def group_of_one() -> Iterator[str]:
    """A process group of this process alone, with a folder for policies."""
    import torch

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        yield folder
    torch.distributed.destroy_process_group()


def make_worker(base: str, args: list[str], times: list[float], **setup: Any) -> Any:
    """A training worker of the flags ``args``, which adds the time of each report to ``times``.

    ``setup`` is a function of its resolved configuration for each of its further inputs.
    """
    from rayrec.driver.checks import resolve
    from rayrec.methods import parse
    from rayrec.objectives.settings import make_objective
    from rayrec.runs.storage import Storage
    from rayrec.training.worker import Worker

    class Timed(Worker):
        def report(self, **_: Any) -> None:
            times.append(time.perf_counter())

    config = resolve(parse("", [*args, "--checkpoint-steps", "0", "--checkpoint-seconds", "0"]))
    given = {"config": config, "base": base, "gpu": False, "storage": Storage("")}
    given["objective"] = make_objective(config.loss)
    return Timed(given | {name: make(config) for name, make in setup.items()}, 0, 1)


def worker_steps(
    base: str, args: list[str], kind: Literal["sft", "prefer"], data: list[Example], batch: int, lr: float
) -> dict[str, Any]:
    """Train a second phase on ``data`` in steps of ``batch`` examples, after a first phase of one step.

    Returns ``seconds`` from the loading of the start to the last step, peak ``memory`` and ``memory_above`` the loaded
    model's in bytes, ``tokens``, ``losses``, the first step's ``grad_norm``, and the ``flops`` of the first phase's one
    step.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rayrec.training.board import Phase

    steps, times, table = len(data) // batch, list[float](), table_of(data, batch)
    with group_of_one() as folder:
        worker = make_worker(base, args, times)
        model = worker.config.model
        dropout = model.lora_dropout if kind == "sft" and model.lora_rank else 0.0
        place, threads = f"{folder}/first", torch.get_num_threads()
        phase = Phase("first", kind, "", base, place, 1, batch, lr, 0, dropout, threads, schedule="constant")
        before = reset_peak()
        with FlopCounterMode(display=False) as counted:
            worker.run(phase, partial(shard, table, batch, 1))
        times.clear()
        reset_peak()
        second = replace(phase, name="second", out=f"{folder}/second", steps=steps)
        done = worker.run(second, partial(shard, table, batch, steps))
        most = peak()
    return {
        "seconds": times[-1] - times[0],
        "memory": most,
        "memory_above": most - before,
        "tokens": done["facts"]["tokens"],
        "losses": [step["loss"] for step in done["steps"]],
        "grad_norm": done["steps"][0]["grad_norm"],
        "flops": counted.get_total_flops(),
    }
