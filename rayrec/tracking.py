"""Curves for people who watch a run: TensorBoard always, MLflow and Weights & Biases when asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

#: Keys of a record that name it rather than measure something.
_NAMES = ("kind", "phase", "iteration", "policy", "decode", "embedder", "split", "model", "sampler")


def check(trackers: Sequence[str]) -> None:
    """Raise ValueError for a tracker whose package is not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--track {name}: the package is not installed. Install rayrec[track], or leave it out.")


class Tracker:
    """Sends the numbers of each finished phase to the chosen places; the run folder stays the record of truth."""

    def __init__(self, folder: Path, trackers: Sequence[str], settings: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._others = [_STARTERS[name](folder.name, settings) for name in trackers]

    def phase(self, metrics: dict[str, Any]) -> None:
        """Send one phase's ``metrics.json``: its steps one by one, its records at their iteration."""
        for name, value, at in _scalars(metrics):
            self._board.add_scalar(name, value, at)
            for send in self._others:
                send(name, value, at)
        self._board.flush()

    def close(self) -> None:
        """Finish the event file."""
        self._board.close()


def _scalars(metrics: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    for record in metrics["records"]:
        place = "/".join(str(record[key]) for key in ("kind", "model", "split", "decode", "sampler") if record.get(key))
        for name, value in record.items():
            if name not in _NAMES and isinstance(value, Real) and not isinstance(value, bool):
                yield f"{place}/{name.replace('@', '_at_')}", float(value), record["iteration"]
        for step in metrics.get("steps", []):
            for name in step.keys() - {"step"}:
                yield f"{record['phase']}/{name}", float(step[name]), step["step"]


def _mlflow(run: str, settings: dict[str, Any]) -> Any:
    import mlflow  # pyright: ignore[reportMissingImports]

    mlflow.start_run(run_name=run)
    mlflow.log_params({f"{group}.{k}": v for group, values in settings.items() for k, v in values.items()})
    return lambda name, value, at: mlflow.log_metric(name, value, step=at)


def _wandb(run: str, settings: dict[str, Any]) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    session = wandb.init(project="rayrec", name=run, config=settings)
    # Phases have steps of their own, so each curve carries its own axis.
    return lambda name, value, at: session.log({name: value, f"{name}/at": at})


_STARTERS = {"mlflow": _mlflow, "wandb": _wandb}
