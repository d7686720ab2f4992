"""The optimiser steps of one phase on one training worker: rows become passes, and passes one step of all workers.

Shapes: B examples of a micro-batch, A answers of an example (the chosen one first).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayrec.config import Config
from rayrec.objectives import Objective
from rayrec.runs.storage import Storage
from rayrec.seeds import seed_of
from rayrec.training import checkpoint, memory
from rayrec.training.batches import padding
from rayrec.training.board import Phase
from rayrec.training.supervised import CatalogueLoss

#: Loss per example and what else is logged per example, of a micro-batch's rows.
Loss = Callable[[list[dict]], tuple[Any, dict[str, Any]]]
#: Reader of this worker's rows of every step from a given step on.
Shard = Callable[[int], Iterable[pa.Table]]


@dataclass
class Process:
    """One training process of ``world``: what it holds from phase to phase."""

    config: Config
    objective: Objective
    catalogue: CatalogueLoss | None
    """Set where the SFT loss reads the catalogue."""
    storage: Storage
    rank: int
    world: int
    device: Any
    lm: Any
    """The model of all phases, a :class:`rayrec.models.logprobs.PackedLM`."""
    memory: memory.Memory
    multiple: int
    """The tokens of a row are whole blocks of so many."""

    def whole(self) -> AbstractContextManager:
        """Gather parameters that ZeRO-3 has split, for loading (rank 0's values reach all) and saving."""
        import deepspeed

        split = [p for p in self.lm.parameters() if hasattr(p, "ds_id")]
        return deepspeed.zero.GatheredParameters(split, modifier_rank=0) if split else nullcontext()

    def spread(self) -> None:
        """Give rank 0's weights to all ranks; those that ZeRO-3 has split went at the end of :meth:`whole`."""
        import torch.distributed as dist

        for parameter in self.lm.parameters():
            if not hasattr(parameter, "ds_id"):
                dist.broadcast(parameter.data, 0)


def clips(config: Config) -> bool:
    """Whether gradients are clipped here: at stage 0 in float32 DeepSpeed reads the norm of each by itself, and
    does not return that of all."""
    return config.train.zero_stage == 0 and (config.train.dtype == "float32" or bool(config.model.lora_rank))


class Steps:
    """The steps of one phase; a subclass knows their losses. ``seen`` counts examples and tokens that were passed."""

    def __init__(self, process: Process, engine: Any, phase: Phase, shard: Shard, report: Callable[..., Any]):
        import torch

        self.process, self.config = process, process.config
        self.engine, self.phase, self.shard, self.report = engine, phase, shard, report
        self.seen = torch.zeros(2, dtype=torch.float64)
        self.progress: dict[str, Any] = {"phase": phase.name, "step": 0, "steps": phase.steps}

    def train(self, done: list[dict]) -> list[dict]:
        """Do the steps after those that are ``done``; returns the records of all."""
        raise NotImplementedError

    @property
    def slots(self) -> range:
        """This worker's slots of the global batch."""
        rows = self.phase.batch // self.process.world
        return range(self.process.rank * rows, (self.process.rank + 1) * rows)

    def _rows(self, begun: int) -> Iterator[list[dict]]:
        """Yield the rows of each step from ``begun`` on as dicts, checked for their step and slots."""
        for number, batch in enumerate(self.shard(begun), begun):
            rows = batch.to_pylist()
            found = [(row["step"], row["slot"]) for row in rows]
            wanted = [(number, slot) for slot in self.slots]
            assert found == wanted, f"step {number}, slots {self.slots} received rows {found}"
            yield [row if row["weight"] else padding(row) for row in rows]

    def _steps(
        self,
        done: list[dict],
        steps: Iterable[list[dict]],
        loss: Loss,
        count: Callable[[dict], float],
        before: Callable[[list[dict]], None] = lambda rows: None,
        around: Callable[[int], AbstractContextManager] = lambda number: nullcontext(),
        after: Callable[[dict], None] = lambda record: None,
    ) -> list[dict]:
        """Do the steps after those that are ``done``, each between ``before(rows)`` and ``after(record)``.

        Each is done within ``around(number)``, and divided by the sum of ``count`` over the global batch.
        Returns the records of all.
        """
        import torch

        phase, process, folder = self.phase, self.process, checkpoint.folder_of(self.phase.out)
        self.clock = checkpoint.Clock(self.config.placement)
        if done:
            checkpoint.restore(folder, len(done), self.engine, process.whole)
        records = list(done)
        for rows in steps:
            # Dropout follows from the number of the step, so a phase that goes on at one draws what it would have.
            if phase.dropout:
                torch.manual_seed(seed_of(self.config.data.seed, phase.name, len(records), process.rank))
            before(rows)
            self.engine.train()
            with around(len(records)):
                records.append(self._step(len(records), rows, loss, count))
            after(records[-1])
            if len(records) < phase.steps and self.clock.due(len(records), self.late):
                with self.clock.saving():
                    checkpoint.save(folder, phase.key, records, self.engine, process.rank, process.storage)
        return records

    def _step(self, number: int, rows: list[dict], loss: Loss, count: Callable[[dict], float]) -> dict:
        """One optimiser step on a global batch; every sum is over all workers, so their number does not matter.

        A GPU is waited for once, at the end, where the sums are read.
        """
        import torch
        import torch.distributed as dist

        from rayrec.models.logprobs import carried

        engine, phase, process = self.engine, self.phase, self.process
        total = torch.tensor(float(sum(map(count, rows))), dtype=torch.float64)
        dist.all_reduce(total)
        counted = float(total) or 1.0
        rate = phase.lr * _schedule(phase.schedule, number, phase.steps, phase.warmup)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        sums: dict[str, Any] = {}
        losses: list[tuple[list[dict], Any]] = []
        micros, norm = self._micro(rows), None
        for micro in micros:
            engine.set_gradient_accumulation_boundary(last := micro is micros[-1])
            loss_B, logged = loss(micro)
            weight_B = carried(torch.tensor([row["weight"] for row in micro]), loss_B.device)
            share = (weight_B * loss_B).sum() / counted
            losses.append((micro, loss_B.detach()))
            for name, value_B in {"loss": loss_B.detach(), **logged}.items():
                part = (weight_B * value_B.detach()).sum().double() / counted
                sums[name] = sums.get(name, 0) + part
            # DeepSpeed averages over workers; the share is already of the global batch.
            engine.backward(share * process.world)
            if last and clips(self.config):
                trained = [p for p in process.lm.parameters() if p.grad is not None]
                norm = torch.nn.utils.clip_grad_norm_(trained, self.config.train.clip)
            engine.step()
        norm = engine.get_global_grad_norm() if norm is None else norm
        norm = torch.as_tensor(0.0 if norm is None else norm).double().to(losses[-1][1].device)
        *values, norm = torch.stack([*sums.values(), norm]).cpu()
        values = torch.stack([*values, torch.tensor(self.clock.late(process.rank), dtype=torch.float64)])
        dist.all_reduce(values)
        self.late, norm = bool(values[-1]), float(norm)
        if not math.isfinite(values[0]) or not math.isfinite(norm):
            raise FloatingPointError(
                f"{phase.name}: step {number + 1} has loss {float(values[0])} and gradient norm {norm}; nothing of "
                f"this phase is kept. Its examples: {self._suspects(losses)[:16]}. Lower --lr, or look at these rows."
            )
        self._tell(step=number + 1, loss=float(values[0]))
        record = {name: float(v) for name, v in zip(sums, values[:-1], strict=True)}
        return {"step": number + 1, **record, "grad_norm": norm, "lr": rate}

    def _suspects(self, losses: list[tuple[list[dict], Any]]) -> list[str]:
        """Ids of the examples of all ranks whose own loss is not finite; of all examples where every one is."""
        import torch.distributed as dist

        own = [
            (row["example_id"], math.isfinite(loss))
            for rows, loss_B in losses
            for row, loss in zip(rows, loss_B.tolist(), strict=True)
        ]
        found: list[Any] = [None] * self.process.world
        dist.all_gather_object(found, own)
        ids = [one for some in found for one in some]
        return [name for name, fine in ids if not fine] or [name for name, _ in ids]

    def _tell(self, **facts: Any) -> None:
        """Report how far the phase is."""
        self.progress = {"phase": self.phase.name, "steps": self.phase.steps, **facts}
        self.report(**self.progress)

    def _micro(self, rows: list[dict]) -> list[list[dict]]:
        """Cut a worker's rows of one step into micro-batches of similar length, as many as the other workers."""
        import torch
        import torch.distributed as dist

        def size(row: dict) -> int:
            return len(row["prompt"]) + sum(map(len, row["answers"]))

        rows = sorted(rows, key=lambda row: (size(row), row["slot"]))
        counts = [(size(row), sum(map(len, row["answers"]))) for row in rows]
        parts = torch.tensor(self.process.memory.passes(counts))
        dist.all_reduce(parts, dist.ReduceOp.MAX)
        return [rows[a:b] for a, b in memory.cuts(len(rows), int(parts))]

    def _pack(self, rows: list[dict], extra: list[list[list[int]]] | None = None) -> Any:
        """Pack the examples of ``rows``, each with its answers and then the ``extra`` ones, on the device."""
        return self._packed(rows, extra).to(self.process.device)

    def _packed(self, rows: list[dict], extra: list[list[list[int]]] | None = None) -> Any:
        """The same on the host; a pass is a heartbeat."""
        from rayrec.models.logprobs import pack

        more = extra or [[]] * len(rows)
        examples = [(row["prompt"], row["answers"] + other) for row, other in zip(rows, more, strict=True)]
        runs = self.config.train.attention == "varlen"
        packed = pack(examples, multiple=self.process.multiple, runs=runs)
        self.report(**self.progress)
        self.seen[0] += sum(1 for row in rows if row["weight"])
        self.seen[1] += packed.ids_RT.numel()
        return packed


def _schedule(name: str, step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then linear or cosine decay, or constant."""
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    return {"linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left), "constant": 1.0}[name]
