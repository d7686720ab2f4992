"""Sequential recommenders trained data-parallel by Ray Train, in the worker group of a run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rayrec.cluster.reserve import Reserved
from rayrec.config import BaselinesConfig
from rayrec.data import Dataset
from rayrec.models import sequential
from rayrec.models.sequential.training import STOPS_BY
from rayrec.report.terminal import LaneProgress
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from rayrec.training.board import Heartbeat, give_up, take_phases
from rayrec.training.group import TrainGroup

_VALID = STOPS_BY.replace("_", " ")


@dataclass(frozen=True)
class Fit:
    """One model to train: a phase of the group."""

    name: str
    model: str
    """Its architecture, a key of :data:`~rayrec.models.sequential.SEQUENTIAL`."""
    shape: dict[str, Any]
    how: sequential.Fitting
    seed: int
    rows: Any
    """Ray's reference to training sequences, validation rows and item features (None but for MoRec)."""
    out: str
    """Folder that the model is written to, with ``epochs.jsonl``, the validation of every epoch."""
    threads: int
    """0: the cores shared out among the workers."""


class SequentialGroup:
    """Trains sequential models one after the other, in one group of workers."""

    def __init__(
        self, config: BaselinesConfig, data: Dataset, work: Run, gpu: bool, reserved: Reserved, bars: LaneProgress
    ):
        self.config, self.data, self.work, self._bars = config, data, work, bars
        less = "Lower --batch, --hidden or --history, under another --name."
        self.group = TrainGroup[Fit](config, _work, {}, work, gpu, reserved, less_memory=less)

    def fit(self, name: str, folder: Path, features: Any) -> dict:
        """Train one model into ``folder``; returns its report.

        Raises:
            ValueError: a loss was not finite, or no sequence is long enough.
            Stopped: the workers died more often than allowed, or were silent for ``wait_seconds``.
        """
        import ray

        settings, data = self.config.sequential, self.data
        shape = {"items": len(data.catalogue), "hidden": settings.hidden, "dropout": settings.dropout}
        how = {field.name: getattr(settings, field.name) for field in dataclasses.fields(sequential.Fitting)}
        rows = sequential.sequences_of(data.train, data.catalogue), sequential.known_rows(data.valid, data.catalogue)
        phase = Fit(
            name=f"00/{name}",
            model=name,
            shape={**shape, "length": self.config.data.history},
            how=sequential.Fitting(**how),
            seed=self.config.data.seed,
            rows=ray.put((*rows, features)),
            out=str(folder),
            threads=self.config.placement.threads or 0,
        )
        self._bars.start("trainers", phase.name, settings.epochs, "epochs")
        try:
            report = self.group.run(phase, partial(self._progress, phase.name))["report"]
        except FloatingPointError as error:
            raise ValueError(f"{phase.name}: {error}") from error
        best = f"epoch {report['best_epoch']} of {report['epochs']} was the best"
        self._bars.finish(phase.name, f"{best}, {_VALID} {report[STOPS_BY]:.4f}")
        self.work.storage.download_all(folder)
        return report

    def _progress(self, name: str, epoch: int, **beat: Any) -> None:
        self.work.trace.progress(name, epoch=epoch, **beat)
        note = f"loss {beat['loss']:.4f}, {_VALID} {beat['valid']:.4f}" if "loss" in beat else ""
        self._bars.update(name, epoch, note)


def _work(setup: dict) -> None:
    """Ray Train's function in every worker: train models until the board closes."""
    import ray
    import torch.distributed as dist
    from ray import train

    rank, world, board = train.get_context().get_world_rank(), train.get_context().get_world_size(), setup["board"]
    heartbeat = Heartbeat(board, rank)
    for number, phase in take_phases(board, rank):
        share = sequential.Share(rank, world, dist.all_reduce)
        try:
            result = {"report": _fit(phase, setup["storage"], setup["gpu"], share, heartbeat)}
        except (FloatingPointError, ValueError) as error:  # every rank raises it, and would again
            result = {"error": str(error)}
        except Exception as error:
            return give_up(error, board, rank)
        if world > 1:
            dist.barrier()
        if rank == 0:
            ray.get(board.finish.remote(number, result))


def _fit(
    phase: Fit, storage: Storage, gpu: bool, share: sequential.Share, heartbeat: Callable[..., None]
) -> dict[str, float]:
    """Train one model and save it on rank 0."""
    import ray
    import torch

    torch.set_num_threads(phase.threads or max(1, (os.cpu_count() or 1) // share.world))
    torch.use_deterministic_algorithms(not gpu, warn_only=True)
    sequences, valid, features = ray.get(phase.rows)
    model = sequential.build(phase.model, phase.shape, phase.seed, features)
    model.to("cuda" if gpu else "cpu")
    folder = storage.here(phase.out)
    folder.mkdir(parents=True, exist_ok=True)
    epochs = folder / "epochs.jsonl"
    epochs.unlink(missing_ok=True)
    beat: dict[str, Any] = {"phase": phase.name, "epoch": 0, "passes": 0}

    def on_pass(*_: Any) -> None:
        """Every pass is a heartbeat: an epoch may take longer than ``wait_seconds``."""
        beat["passes"] += 1
        heartbeat(**beat)

    def on_epoch(epoch: int, loss: float, found: float) -> None:
        beat.update(epoch=epoch, loss=loss, valid=found)
        heartbeat(**beat)
        if share.rank == 0:
            with epochs.open("a") as file:
                file.write(json.dumps({"epoch": epoch, "loss": loss, STOPS_BY: found}) + "\n")

    heartbeat(**beat)
    model.register_forward_hook(on_pass)
    report = sequential.fit(model, sequences, valid, phase.seed, phase.how, share, on_epoch)
    if share.rank == 0:
        sequential.save(model.to("cpu"), folder)
        storage.upload(folder)
    return report
