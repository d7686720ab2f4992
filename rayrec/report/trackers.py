"""Curves of a run: TensorBoard always, MLflow and Weights & Biases with ``--track``."""

import importlib.util
import logging
import os
import re
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from rayrec.metrics import METRICS
from rayrec.runs.manifest import read_json, write_json

_log = logging.getLogger(__name__)

#: Seconds between two points of a running phase.
LIVE = 2.0
#: File of a run folder with the ids of its runs in the trackers.
RUNS = "trackers.json"
#: Keys of a record that name it rather than measure something.
_NAMES = ("kind", "phase", "iteration", "policy", "decode", "embedder", "split", "model", "sampler")


def check(trackers: Sequence[str]) -> None:
    """Raise ValueError for a tracker whose package is not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--track {name}: the package is not installed. Install rayrec[track], or leave it out.")


class Curves(NamedTuple):
    """A run in a tracker."""

    #: (numbers by name, the name of their axis, their place on it), from any thread
    send: Callable[[Mapping[str, float], str, int], Any]
    end: Callable[[type[BaseException] | None], Any]  #: the type of the error that ended the run, None without one
    id: str  #: by which a later process goes on with it


class _Pace(NamedTuple):
    """How far a running phase was when it was last sent, and when that was."""

    done: int
    time: float


class _Held(NamedTuple):
    """A series that has had one value, and where its points are."""

    value: float
    begun: int
    until: int


class Tracker:
    """Sends the numbers of a run to the trackers while it goes; ValueError if one refuses the run.

    Numbers of training lie over the optimiser steps of the whole run, those of generation over its parts, in the order
    of the plan, and those of a finished evaluation over the iterations. One that never changes is not sent. A resumed
    run goes on in the runs that ``trackers.json`` of its folder names. ``plan``: phase, unit and units of each phase.
    """

    def __init__(
        self,
        folder: Path,
        trackers: Sequence[str],
        settings: dict[str, Any],
        plan: Iterable[tuple[str, str, int]] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        from torch.utils.tensorboard import SummaryWriter

        self._lock, self._clock, self._failed = threading.RLock(), clock, set[str]()
        self._places, before = dict[str, tuple[str, int]](), Counter[str]()
        for phase, unit, units in plan:
            self._places[phase] = unit.removesuffix("s"), before[unit]
            before[unit] += units
        self._paces, self._held = dict[str, _Pace](), dict[str, _Held | None]()
        self._board, known = SummaryWriter(str(folder / "tensorboard")), _known(folder)
        self._others = {name: _start(name, folder, settings, known.get(name)) for name in trackers}
        if ids := {name: other.id for name, other in self._others.items()}:
            write_json(folder / RUNS, known | ids)

    def live(self, phase: str, done: int, **facts: float) -> None:
        """Send that ``done`` units of a running phase are done, at most every :data:`LIVE` seconds.

        ``facts``: its last ``loss``, and the ``memory`` of its first process in bytes; others are not sent.
        """
        with self._lock:
            now, last = self._clock(), self._paces.get(phase)
            if not done or phase not in self._places or (last and (done <= last.done or now - last.time < LIVE)):
                return
            self._paces[phase] = _Pace(done, now)
            (axis, before), kind = self._places[phase], phase.split("/")[-1]
            values = {f"{kind}/loss": facts["loss"]} if "loss" in facts else {}
            values |= {"memory/trainer_gib": facts["memory"] / 2**30} if "memory" in facts else {}
            if last:
                values[f"throughput/{kind}_{axis}s_per_s"] = (done - last.done) / (now - last.time)
            self._send(values, axis, before + done)
            self._board.flush()

    def phase(self, metrics: Mapping[str, Any]) -> None:
        """Send one finished phase's ``metrics.json``: its steps one by one, its records at their iteration.

        A tracker that fails is logged once and gets nothing more: training would wait minutes for each retry.
        """
        with self._lock:
            steps, records = metrics.get("steps") or [], metrics["records"]
            for record in () if steps else records:
                self._send(_scalars(record), "iteration", record["iteration"])
            if steps:
                phase = records[0]["phase"]
                (axis, before), kind = self._places.get(phase, ("step", 0)), phase.split("/")[-1]
                sent = self._paces[phase].done if phase in self._paces else 0
                for step in steps:  # the losses that were sent already were so in this order
                    known = {"step", "loss"} if step["step"] <= sent else {"step"}
                    values = {f"{kind}/{name}": float(step[name]) for name in step if name not in known}
                    self._send(values, axis, before + step["step"])
            self._board.flush()

    def close(self) -> None:
        """Close the event file and end the run in each tracker: as failed or stopped during an exception."""
        self._board.close()
        error = sys.exc_info()[0]
        for other in self._others.values():
            _try("ended", other.end, error)

    def _send(self, values: Mapping[str, float], axis: str, at: int) -> None:
        """Send numbers, each from the time on when its series is known to change."""
        now: dict[int, dict[str, float]] = {}
        for name, value in values.items():
            for place, one in self._points(name, value, at):
                now.setdefault(place, {})[name] = one
        for place in sorted(now):
            self._now(now[place], axis, place)

    def _points(self, name: str, value: float, at: int) -> list[tuple[int, float]]:
        """The points of a series that can be sent: none while it has one value, then the first and last of that too."""
        if name not in self._held:
            shown = name.endswith("/loss") or (_measures(name) and value != 0)
            self._held[name] = None if shown else _Held(value, at, at)
            return [(at, value)] if shown else []
        held = self._held[name]
        if held is not None and held.value == value:
            self._held[name] = held._replace(until=at)
            return []
        self._held[name] = None
        former = [(place, held.value) for place in {held.begun, held.until}] if held else []
        return [*former, (at, value)]

    def _now(self, values: Mapping[str, float], axis: str, at: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, at)
        for name, other in self._others.items():
            if name not in self._failed and not _try("updated", other.send, values, axis, at):
                self._failed.add(name)


def _known(folder: Path) -> dict[str, str]:
    """The ids of the run's runs in the trackers."""
    file = folder / RUNS
    return read_json(file, "Remove it, which begins other runs in the trackers.") if file.exists() else {}


def _try(action: str, call: Callable[..., Any], *given: Any) -> bool:
    """Whether a call to a tracker succeeded; a failure is logged."""
    try:
        call(*given)
    except Exception as error:
        _log.warning("the run could not be %s where it is tracked: %s", action, _without_secrets(error))
        return False
    return True


def _start(name: str, folder: Path, settings: dict[str, Any], known: str | None) -> Curves:
    try:
        return _STARTERS[name](folder.name, settings, known)
    except Exception as error:
        how, remedy = ("resumed", f" Remove {folder / RUNS} to begin another one.") if known else ("begun", "")
        raise ValueError(f"--track {name}: no run could be {how} there: {_without_secrets(error)}{remedy}") from None


def _without_secrets(error: Exception) -> str:
    """The error as text, without the user and password that an address may hold."""
    return re.sub(r"//[^/@\s]+@", "//***@", f"{type(error).__name__}: {error}")


def _measures(name: str) -> bool:
    """Whether a series is that of a metric of policies, which is worth a point although no second one may come."""
    kind, measured = name.partition("/")[0], name.rpartition("/")[2]
    known = (metric.replace("@", "_at_") for metric in METRICS)
    return kind == "evaluation" and any(measured == one or measured.startswith(f"{one}_at_") for one in known)


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by the names of their series."""
    place = "/".join(str(record[key]) for key in ("kind", "model", "split", "decode", "sampler") if record.get(key))
    numbers = {n: v for n, v in record.items() if n not in _NAMES and isinstance(v, Real) and not isinstance(v, bool)}
    return {f"{place}/{name.replace('@', '_at_')}": float(value) for name, value in numbers.items()}


def _mlflow(run: str, settings: dict[str, Any], known: str | None) -> Curves:
    import mlflow  # pyright: ignore[reportMissingImports]

    # Lanes send from their own threads; without the run's id each thread would start another run.
    run_id = mlflow.start_run(run_id=known, run_name=None if known else run).info.run_id
    if not known:  # parameters of a run cannot change
        mlflow.log_params({f"{group}.{k}": v for group, values in settings.items() for k, v in values.items()})

    def send(values: Mapping[str, float], axis: str, at: int) -> None:
        mlflow.log_metrics(dict(values), step=at, run_id=run_id)

    def end(error: type[BaseException] | None) -> None:
        stopped = error is not None and issubclass(error, KeyboardInterrupt)
        mlflow.end_run("FINISHED" if error is None else "KILLED" if stopped else "FAILED")

    return Curves(send, end, run_id)


def _wandb(run: str, settings: dict[str, Any], known: str | None) -> Curves:
    import wandb  # pyright: ignore[reportMissingImports]

    project, own = os.environ.get("WANDB_PROJECT") or "rayrec", known or uuid.uuid4().hex[:12]
    session = wandb.init(project=project, name=run, config=settings, id=own, resume="allow", allow_val_change=True)
    axes = set[str]()

    def send(values: Mapping[str, float], axis: str, at: int) -> None:
        for name in values.keys() - axes:
            session.define_metric(name, step_metric=axis)
        axes.update(values)
        session.log({**values, axis: at})

    return Curves(send, lambda error: session.finish(exit_code=0 if error is None else 1), own)


_STARTERS = {"mlflow": _mlflow, "wandb": _wandb}
