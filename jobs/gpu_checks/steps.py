"""Training steps of a worker, alone and without Ray: phases, memory, resuming, and users per second."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benches.dpo import dpo_trainer, words
from benches.training import shard, table_of

from gpu_checks import ALPHA, DROPOUT, LR, RANK, Check, Example, Line, Place

Kind = Literal["sft", "prefer"]
#: Examples of a step, and of what a worker computes at once.
BATCH, MICRO = 32, 16


class Trained:
    """A worker, and what it reported."""

    def __init__(self, place: Place, *args: str):
        import torch

        from rayrec.driver.checks import resolve
        from rayrec.methods import parse
        from rayrec.objectives.settings import make_objective
        from rayrec.runs.storage import Storage
        from rayrec.training.group import backends
        from rayrec.training.worker import Worker

        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ["DS_ACCELERATOR"] = "cuda" if place.gpu else "cpu"
        if not torch.distributed.is_initialized():
            store = f"file://{place.folder}/store"
            torch.distributed.init_process_group(backends(place.gpu), init_method=store, rank=0, world_size=1)
        flags = ["--model", place.base, "--lora-rank", str(RANK), "--lora-alpha", str(ALPHA), "--max-length", "1024"]
        flags += ["--micro-batch", str(MICRO), "--beta", "0.1"]
        flags += ["--dtype", "bfloat16", "--attention", "varlen"] if place.gpu else ["--dtype", "float32"]
        config = resolve(parse("", [*flags, "--checkpoint-seconds", "0", *args]), place.gpu)
        self.place, self.beats = place, list[tuple[float, dict[str, Any]]]()
        setup = {"config": config, "base": place.base, "gpu": place.gpu, "storage": Storage("")}
        self.worker = Worker(setup | {"objective": make_objective(config.loss)}, 0, 1)
        self.worker.report = self.note

    def note(self, **beat: Any) -> None:
        """Note a heartbeat."""
        self.beats.append((time.perf_counter(), beat))

    def phase(self, kind: Kind, data: list[Example], name: str, start: str = "", batch: int = BATCH) -> dict[str, Any]:
        """Train one phase; returns the worker's result with the ``seconds`` of its passes and its policy ``folder``."""
        from rayrec.training.board import Phase

        table, steps, out = table_of(data, batch), len(data) // batch, str(self.place.folder / name / "policy")
        Path(out).mkdir(parents=True, exist_ok=True)

        dropout, base = DROPOUT if kind == "sft" else 0.0, self.place.base
        phase = Phase(name, kind, "", start or base, out, steps, batch, LR, 0, dropout, 2, "", "k", schedule="constant")
        self.beats.clear()
        done = self.worker.run(phase, partial(shard, table, batch, steps))
        return done | {"seconds": self.beats[-1][0] - self.beats[0][0], "folder": out}


def missing() -> str:
    """Why there can be no worker here."""
    return "" if importlib.util.find_spec("deepspeed") else "not run: deepspeed is not installed"


def phases(place: Place) -> Iterator[Line]:
    """SFT and preference by turns: losses, adapters, and memory that comes back."""
    if why := missing():
        return (yield Line("phases of a worker", "", why))
    trained, held = Trained(place, "--objective", "sdpo"), []
    start, losses = "", list[float]()
    for turn in range(4):
        kind: Kind = "prefer" if turn % 2 else "sft"
        done = trained.phase(kind, place.examples(2 * BATCH, 3 if turn % 2 else 0), f"turn{turn}", start)
        start = done["folder"]
        losses += [step["loss"] for step in done["steps"]] + [step["grad_norm"] for step in done["steps"]]
        held.append(place.held())
    finite, saved = all(map(math.isfinite, losses)), (Path(start) / "adapter_model.safetensors").exists()
    yield Line("four phases: losses and norms", "finite, adapters written", f"{losses[-4:]}", finite and saved)
    more = (held[-1] - held[0]) / 2**20
    found = f"{more:.0f} MiB more after the fourth than after the first"
    yield Line("memory over phases", "< 64 MiB more", found, more < 64 if place.gpu else None, {"mib": more})
    if place.gpu:
        import torch

        idle = (torch.cuda.memory_reserved() - torch.cuda.memory_allocated()) / 2**30
        yield Line("memory kept for nothing after a phase", "< 1 GiB", f"{idle:.2f} GiB", idle < 1)


class CutOff(Exception):
    """The end of a worker in the middle of a phase."""


def resume(place: Place) -> Iterator[Line]:
    """A phase that is cut off and goes on, at every stage of ZeRO."""
    from safetensors.torch import load_file

    if why := missing():
        return (yield Line("a phase that goes on", "", why))
    data = place.examples(3 * BATCH, 3)
    for stage in (0,) if place.quick else (0, 1, 2, 3):
        trained = Trained(place, "--objective", "sdpo", "--zero-stage", str(stage), "--checkpoint-steps", "2")
        whole = trained.phase("prefer", data, f"whole{stage}")["folder"]

        def cut(trained: Trained = trained, **beat: Any) -> None:
            trained.note(**beat)
            if beat.get("step") == 3:
                raise CutOff

        trained.worker.report = cut
        try:
            trained.phase("prefer", data, f"cut{stage}")
            raise AssertionError("a phase that was cut off has ended")
        except CutOff:
            trained.worker.report = trained.note
        done = trained.phase("prefer", data, f"cut{stage}")
        one, two = (load_file(Path(folder) / "adapter_model.safetensors") for folder in (whole, done["folder"]))
        worst = max(float((one[name] - two[name]).abs().max()) for name in one) / LR
        went_on = done["facts"].get("resumed_at") == 2
        found = f"off by {worst:.2g} of the learning rate" + ("" if went_on else ", from the start")
        yield Line(f"a phase that goes on, stage {stage}", "< 0.1 of the learning rate", found, went_on and worst < 0.1)
        shutil.rmtree(place.folder / f"cut{stage}")


def speed(place: Place) -> Iterator[Line]:
    """Users per second of SFT and of preference steps, against plain steps of peft and of TRL."""
    import torch

    if why := missing():
        return (yield Line("steps of a worker", "", why))
    steps = 2 if place.quick else 8
    for k in (0, 3) if place.quick else (0, 1, 3, 8):
        kind: Kind = "prefer" if k else "sft"
        trained, data = Trained(place, "--objective", "sdpo"), place.examples(steps * BATCH, k)
        trained.phase(kind, data[: 2 * BATCH], "warm")
        if place.gpu:
            torch.cuda.reset_peak_memory_stats()
        done = trained.phase(kind, data, "timed")
        seconds, tokens = done["seconds"], done["facts"]["tokens"]
        numbers = {"users_per_s": len(data) / seconds, "tokens_per_s": tokens / seconds}
        # Forward, back to the input, and for half of a preference step's tokens the reference's forward pass alone.
        work = place.operations(tokens, 1.5 if k else 2) / seconds
        numbers |= {"mfu": work / place.flops()} if place.flops() else {}
        told = trained.worker.memory.held_bytes(trained.worker.memory.largest(200 + 10 * k, 10 + 10 * k, BATCH)[1])
        peak = torch.cuda.max_memory_allocated() if place.gpu else 0
        numbers |= {"peak_gb": peak / 1e9, "told_gb": told / 1e9}
        del trained
        what = f"preference, K = {k}" if k else "SFT"
        found = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        passed = numbers["mfu"] >= 0.4 if "mfu" in numbers else None
        yield Line(what, "MFU >= 0.4", found, passed, numbers)
        if place.gpu:
            yield Line(f"{what}: memory told", "within 15 %", f"{told / peak:.2f} of it", abs(told / peak - 1) < 0.15)
        rate = plain_steps(place, data[: 2 * BATCH], k)
        times = numbers["users_per_s"] / rate
        yield Line(f"{what} against plain steps of peft", "", f"{times:.1f} times as fast", None, {"times": times})
        if k == 3 and place.gpu and importlib.util.find_spec("trl"):
            times = numbers["users_per_s"] / trl_steps(place, data[: 2 * BATCH])
            yield Line(f"{what} against TRL", ">= 6 times", f"{times:.1f} times as fast", times >= 6, {"times": times})


def plain_steps(place: Place, data: list[Example], k: int) -> float:
    """Users per second of a plain loop: peft's layers, a padded row for each answer, the reference without adapters."""
    import torch

    model = place.model(dropout=0.0 if k else DROPOUT, dtype="bfloat16" if place.gpu else "float32").train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)

    def logprob(some: list[Example], a: int) -> Any:
        rows = [(len(prompt), [*prompt, *answers[a]]) for prompt, answers in some]
        longest = max(len(ids) for _, ids in rows)
        ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in rows], device=place.device)
        logits = model(input_ids=ids_BT).logits[:, :-1].float().log_softmax(-1)
        token_BT = logits.gather(-1, ids_BT[:, 1:, None])[..., 0]
        return torch.stack([one[n - 1 : len(ids) - 1].sum() for one, (n, ids) in zip(token_BT, rows, strict=True)])

    def step(batch: list[Example]) -> None:
        for at in range(0, len(batch), MICRO):
            some = batch[at : at + MICRO]
            chosen_B = logprob(some, 0)
            if not k:
                (-chosen_B.sum() / len(batch)).backward()
                continue
            with torch.no_grad(), model.disable_adapter():
                before = [logprob(some, a) for a in range(1 + k)]
            gaps = [chosen_B - before[0] - logprob(some, a) + before[a] for a in range(1, 1 + k)]
            loss_B = -torch.nn.functional.logsigmoid(-torch.stack([-0.1 * gap for gap in gaps]).logsumexp(0))
            (loss_B.sum() / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return BATCH / place.seconds(lambda: step(data[:BATCH]), 1)


def trl_steps(place: Place, data: list[Example]) -> float:
    """Users per second of TRL's DPOTrainer on the same pairs, adapters and batches, its reference pass included."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(place.base, trust_remote_code=False), place.model()
    settings = {"per_device_train_batch_size": MICRO, "learning_rate": LR, "bf16": True}
    settings |= {"logging_steps": 500, "optim": "adamw_torch_fused"}  # the defaults, which wait for the GPU least
    of = {"model": model, "processing_class": tokenizer}
    trainer, _ = dpo_trainer(data, words, BATCH, str(place.folder / "trl"), settings, **of)
    return len(data) / trainer.train().metrics["train_runtime"]


CHECKS: dict[str, Check] = {"phases": (phases, 60), "resume": (resume, 90), "speed": (speed, 150)}
