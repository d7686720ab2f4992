"""Sequential recommenders trained by Ray Train, with the group and the board of a run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from rayrec.cluster import connect, reserve
from rayrec.config import BaselinesConfig
from rayrec.data import Dataset
from rayrec.models import sequential
from rayrec.models.sequential.training import STOPS_BY
from rayrec.report import terminal
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from rayrec.training.board import Heartbeat, Phase
from rayrec.training.group import TrainGroup, backends, failures, telling


def train(
    name: str,
    config: BaselinesConfig,
    data: Dataset,
    work: Run,
    folder: Path,
    gpu: bool,
    features: Any,
    check_held: Callable[[], None],
) -> dict:
    """Train through Ray Train; the model lies in ``folder``, with the validation of every epoch.

    Raises:
        ValueError: a loss was not finite, or no sequence is long enough.
        Stopped: the workers died more often than allowed, or were silent for ``wait_seconds``.
    """
    import ray

    settings = config.sequential
    shape = {"items": len(data.catalogue), "hidden": settings.hidden, "dropout": settings.dropout}
    shape["length"] = config.data.history
    fitting = {f.name: getattr(settings, f.name) for f in dataclasses.fields(sequential.Fitting)}
    rows = sequential.sequences_of(data.train, data.catalogue), sequential.known_rows(data.valid, data.catalogue)
    task = {
        "name": name,
        "shape": shape,
        "how": sequential.Fitting(**fitting),
        "seed": config.data.seed,
        "rows": ray.put((*rows, features)),
        "storage": work.storage,
        "gpu": gpu,
    }
    phase = Phase(
        name=f"00/{name}",
        kind="pretrain",
        rows="",
        start="",
        out=str(folder),
        steps=settings.epochs,
        batch=settings.batch,
        lr=settings.lr,
        warmup=0,
        dropout=settings.dropout,
        threads=config.placement.threads or 0,
    )
    with terminal.LaneProgress(["trainers"]) as bars:
        group, finished = _Group(config, task, work, gpu, bars, check_held), False
        try:
            report = group.train(phase)
            if "error" in report:
                raise ValueError(f"{phase.name}: {report['error']}")
            finished = True
            best = f"epoch {report['best_epoch']} of {report['epochs']} was the best"
            bars.finish(phase.name, f"{best}, {STOPS_BY.replace('_', ' ')} {report[STOPS_BY]:.4f}")
        finally:
            group.close(finished)
    work.storage.download_all(folder)
    return report


class _Group(TrainGroup):
    """The training lane for one model: workers are replaced and given up as those of a run, and silence is told."""

    def __init__(
        self,
        config: BaselinesConfig,
        task: dict,
        work: Run,
        gpu: bool,
        bars: terminal.LaneProgress,
        check_held: Callable[[], None],
    ):
        self._task, self._bars, self._name, self._check_held = task, bars, "training workers", check_held
        self._last, self._heard, self._told = {}, time.monotonic(), 0.0
        alone = connect.find_address(config) is None
        # What a base model and its prompts are needed for is done otherwise here.
        super().__init__(cast("Any", config), "", cast("Any", None), work, gpu, reserve.Reserved(alone=alone))

    def train(self, phase: Phase) -> dict:
        """Train the model; its report, or the ``error`` in its numbers."""
        self._name, self._heard = phase.name, time.monotonic()
        self._bars.start("trainers", phase.name, phase.steps, "epochs")
        return self.run(phase, self._hear)["report"]

    def _hear(self, **beat: Any) -> None:
        """Take the last heartbeat; a new one counts more passes."""
        if beat != self._last:
            self._last, self._heard, self._told = beat, time.monotonic(), 0.0
            self.work.trace.progress(self._name, **beat)
            note = (
                f"loss {beat['loss']:.4f}, {STOPS_BY.replace('_', ' ')} {beat['valid']:.4f}" if "loss" in beat else ""
            )
            self._bars.update(self._name, beat["epoch"], note)

    def _ask(self, answer: Any, what: str) -> Any:
        """The board is asked twice a second, so here silence is told before it is ended."""
        self._check_held()
        silent, patience = time.monotonic() - self._heard, self._patience(bool(self._last))
        if silent > self._told + min(30.0, patience / 2):
            self._told = silent
            lacking = "no word from the training workers" if self._last else "the training workers have not come up"
            self._bars.log(self._name, f"{lacking} for {silent:.0f} s; they are given up after {patience:.0f} s")
        return super()._ask(answer, what)

    def _trainer(self, size: int) -> Any:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        bundle, *_ = reserve.trainer_bundles(self.config, self.gpu)
        return TorchTrainer(
            _work,
            train_loop_config={**self._task, "board": self.board},
            scaling_config=ScalingConfig(num_workers=size, use_gpu=self.gpu, resources_per_worker=bundle),
            torch_config=TorchConfig(backend=backends(self.gpu)),
            run_config=RunConfig(
                name=f"train-{self._task['name']}",
                **self.work.storage.for_ray_train(self.work.root),
                failure_config=failures(self.elastic),
                callbacks=[telling(self.board)],
            ),
        )


def _work(task: dict) -> None:
    """Ray Train's function in every worker: train until the board closes."""
    import ray
    import torch.distributed as dist
    from ray import train

    rank, world, board = train.get_context().get_world_rank(), train.get_context().get_world_size(), task["board"]
    say = Heartbeat(board, rank)
    number: int = ray.get(board.next.remote())
    while (phase := cast("Phase | None", ray.get(board.take.remote(number, rank)))) is not None:
        report = _fit(task, phase, sequential.Share(rank, world, dist.all_reduce), say)
        if world > 1:
            dist.barrier()
        if rank == 0:
            ray.get(board.finish.remote(number, {"report": report}))
        number += 1


def _fit(task: dict, phase: Phase, share: sequential.Share, say: Callable[..., Any]) -> dict:
    """Train one model and save it on rank 0; ``say`` takes the heartbeats."""
    import os

    import ray
    import torch

    torch.set_num_threads(phase.threads or max(1, (os.cpu_count() or 1) // share.world))
    torch.use_deterministic_algorithms(not task["gpu"], warn_only=True)
    sequences, valid, features = ray.get(task["rows"])
    model = sequential.build(task["name"], task["shape"], task["seed"], features)
    model.to("cuda" if task["gpu"] else "cpu")
    storage: Storage = task["storage"]
    folder = storage.here(phase.out)
    folder.mkdir(parents=True, exist_ok=True)
    epochs = folder / "epochs.jsonl"
    epochs.unlink(missing_ok=True)
    beat: dict[str, Any] = {"phase": phase.name, "epoch": 0, "passes": 0}

    def count(*_: Any) -> None:
        """Every pass is a sign of life: an epoch may take longer than a silence is borne."""
        beat["passes"] += 1
        say(**beat)

    def hear(epoch: int, loss: float, found: float) -> None:
        beat.update(epoch=epoch, loss=loss, valid=found)
        say(**beat)
        if share.rank == 0:
            with epochs.open("a") as file:
                file.write(json.dumps({"epoch": epoch, "loss": loss, STOPS_BY: found}) + "\n")

    say(**beat)
    model.register_forward_hook(count)
    try:
        report = sequential.fit(model, sequences, valid, task["seed"], task["how"], share, hear)
    except (FloatingPointError, ValueError) as error:  # every rank raises it, and would again
        report = {"error": str(error)}
    if share.rank == 0:
        sequential.save(model.to("cpu"), folder)
        storage.upload(folder)
    return report
