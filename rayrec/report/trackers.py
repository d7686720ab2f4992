"""Curves of a run: TensorBoard always, MLflow and Weights & Biases with ``--track``."""

import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

_log = logging.getLogger(__name__)

#: Keys of a record that name it rather than measure something.
_NAMES = ("kind", "phase", "iteration", "policy", "decode", "embedder", "split", "model", "sampler")


def check(trackers: Sequence[str]) -> None:
    """Raise ValueError for a tracker whose package is not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--track {name}: the package is not installed. Install rayrec[track], or leave it out.")


class Curves(NamedTuple):
    """A run in a tracker."""

    send: Callable[[str, float, int], Any]  #: (name, number, its step or iteration), from any thread
    end: Callable[[type[BaseException] | None], Any]  #: the type of the error that ended the run, None without one


class Tracker:
    """Sends the numbers of each finished phase to the trackers; ValueError if one refuses the run."""

    def __init__(self, folder: Path, trackers: Sequence[str], settings: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._others = [_start(name, folder.name, settings) for name in trackers]
        self._failed = set[Curves]()

    def phase(self, metrics: dict[str, Any]) -> None:
        """Send one phase's ``metrics.json``: its steps one by one, its records at their iteration.

        A tracker that fails is logged once and gets nothing more: training would wait minutes for each retry.
        """
        for name, value, at in _scalars(metrics):
            self._board.add_scalar(name, value, at)
            for other in self._others:
                if other not in self._failed and not _try("updated", other.send, name, value, at):
                    self._failed.add(other)
        self._board.flush()

    def close(self) -> None:
        """Close the event file and end the run in each tracker: as failed or stopped during an exception."""
        self._board.close()
        error = sys.exc_info()[0]
        for other in self._others:
            _try("ended", other.end, error)


def _try(action: str, call: Callable[..., Any], *given: Any) -> bool:
    """Whether a call to a tracker succeeded; a failure is logged."""
    try:
        call(*given)
    except Exception as error:
        _log.warning("the run could not be %s where it is tracked: %s", action, _without_secrets(error))
        return False
    return True


def _start(name: str, run: str, settings: dict[str, Any]) -> Curves:
    try:
        return _STARTERS[name](run, settings)
    except Exception as error:
        raise ValueError(f"--track {name}: no run could be begun there: {_without_secrets(error)}") from None


def _without_secrets(error: Exception) -> str:
    """The error as text, without the user and password that an address may hold."""
    return re.sub(r"//[^/@\s]+@", "//***@", f"{type(error).__name__}: {error}")


def _scalars(metrics: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    for record in metrics["records"]:
        place = "/".join(str(record[key]) for key in ("kind", "model", "split", "decode", "sampler") if record.get(key))
        for name, value in record.items():
            if name not in _NAMES and isinstance(value, Real) and not isinstance(value, bool):
                yield f"{place}/{name.replace('@', '_at_')}", float(value), record["iteration"]
        for step in metrics.get("steps", []):
            for name in step.keys() - {"step"}:
                yield f"{record['phase']}/{name}", float(step[name]), step["step"]


def _mlflow(run: str, settings: dict[str, Any]) -> Curves:
    import mlflow  # pyright: ignore[reportMissingImports]

    # Lanes send from their own threads; without the run's id each thread would start another run.
    run_id = mlflow.start_run(run_name=run).info.run_id
    mlflow.log_params({f"{group}.{k}": v for group, values in settings.items() for k, v in values.items()})

    def end(error: type[BaseException] | None) -> None:
        stopped = error is not None and issubclass(error, KeyboardInterrupt)
        mlflow.end_run("FINISHED" if error is None else "KILLED" if stopped else "FAILED")

    return Curves(lambda name, value, at: mlflow.log_metric(name, value, step=at, run_id=run_id), end)


def _wandb(run: str, settings: dict[str, Any]) -> Curves:
    import wandb  # pyright: ignore[reportMissingImports]

    session = wandb.init(project="rayrec", name=run, config=settings)
    # Phases have steps of their own, so each curve carries its own axis.
    return Curves(
        lambda name, value, at: session.log({name: value, f"{name}/at": at}),
        lambda error: session.finish(exit_code=0 if error is None else 1),
    )


_STARTERS = {"mlflow": _mlflow, "wandb": _wandb}
