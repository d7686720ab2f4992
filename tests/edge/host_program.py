"""One training process of ``world``: what it takes to load whole models, and how gradients are added; by test_host.py.

``root/host{rank}.json`` has, for each load, the bytes that this process grew by at most and the sum of its weights
after it; and by ZeRO stage the norm of a step's gradients over so many times that of one of its equal micro-batches.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from rayrec.objectives.settings import make_objective
from rayrec.runs.storage import Storage
from rayrec.training.board import Phase
from rayrec.training.worker import Worker
from tests.edge.worker_program import leave, settings

#: Micro-batches of a step.
MICRO = 48


def status(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def worker_of(base: Path, rank: int, world: int, stage: int, dtype: str = "float32") -> Worker:
    config = settings(stage=stage, dtype=dtype)
    setup = {"config": config, "base": str(base), "gpu": False, "storage": Storage("")}
    worker = Worker(setup | {"objective": make_objective(config.loss)}, rank, world)
    worker.report = lambda **facts: None
    return worker


def phase(start: Path, out: Path, lr: float = 0.0) -> Phase:
    return Phase("01/sft", "sft", "", str(start), str(out), 1, 8, lr, 0, 0.0, 1, "", "k")


def loads(root: Path, rank: int, world: int) -> list[tuple[str, int, float]]:
    """Load a policy, the base again, and the policy once more."""
    worker, found = worker_of(root / "big", rank, world, 1), []
    for parameter in worker.lm.parameters():
        parameter.data.add_(0)  # until it is written to, a model on a CPU may lie in its file
    for name in ("policy", "big", "policy"):
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        worker._load(phase(root / name, root / "out"))
        total = sum(float(one.detach().double().sum()) for one in worker.lm.parameters())
        found.append((name, status("VmHWM") - before, total))
    return found


def added(root: Path, rank: int, world: int, stage: int) -> float:
    """The norm of a step of equal micro-batches over that of one of them and their number."""
    from rayrec.models.logprobs import pack

    worker, norms = worker_of(root / "small", rank, world, stage, "bfloat16"), list[float]()
    engine: Any = worker._engine(phase(root / "small", root / "out"))
    packed = pack([([5, 6, 7 + rank], [[8, 9, 10]])])
    for count in (1, MICRO):
        for number in range(count):
            engine.set_gradient_accumulation_boundary(number + 1 == count)
            engine.backward(-engine(packed).sum())
            engine.step()
        norms.append(float(engine.get_global_grad_norm()))
    return norms[1] / norms[0] / MICRO


def main(root: Path, rank: int, world: int) -> None:
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {"added": {stage: added(root, rank, world, stage) for stage in (2, 3)}}
    found["loads"] = loads(root, rank, world)
    (root / f"host{rank}.json").write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
