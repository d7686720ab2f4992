"""The two lanes of a run: phases in threads, as futures, each done once.

A lane's methods return at once, with a future on a finished phase; a phase that is finished already is not done again.
The lanes of a plan only list their phases, so the loop itself says which phases a run has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayrec import signals
from rayrec.config import Config
from rayrec.data import Dataset
from rayrec.runs.run import Run

#: Version of the model before any training.
BASE = "base"


@dataclass(frozen=True)
class Policy:
    """A version of the policy: the phase that made it, and its folder."""

    version: str
    folder: Path


@dataclass(frozen=True)
class Planned:
    """One phase of a run. Its name is that of its folder, log lines, metrics and trace events."""

    name: str
    kind: str
    rows: int
    batches: int
    """Optimiser steps, or parts of a generation phase; ``unit`` names them."""
    unit: str
    epochs: int = 1
    answers: int = 1
    """Answers beside each prompt that go through the language model; 0 where none does."""
    makes_policy: bool = False
    needs: tuple[str, ...] = ()
    """Phases whose results it reads."""


@dataclass(frozen=True)
class Shared:
    """The settings, data and run that both lanes read. In a plan only ``config`` and ``data`` are set."""

    config: Config
    data: Dataset
    run: Run = None  # pyright: ignore[reportAssignmentType], a plan has no folder
    template: Any = None
    threads: int = 1
    """CPU threads of a process beside others; ``all_threads`` of one that works alone."""
    all_threads: int = 1
    on_finish: Callable[[str, bool], None] = lambda name, new: None
    """Called with the name of every finished phase, and whether it was finished just now."""
    progress: Any = None
    """A ``terminal.LaneProgress``."""
    heard: Callable[..., None] = lambda phase, done, **facts: None
    """Called while a phase runs, with its name, the units that are done, and facts of its heartbeat."""
    check_held: Callable[[], None] = lambda: None
    """Raises once another driver has the run."""
    gpu: bool = False
    last_threads: int = 1
    """CPU threads of a generator in the last evaluation, beside which no trainer works."""
    planned: list[Planned] = field(default_factory=list)
    """The phases of both lanes, in the order of the loop."""
    made_by: dict[Future, str] = field(default_factory=dict)
    """The phase that each future is of."""


class Lane:
    """Runs phases in threads, as futures; ``--sequential`` waits for each before the next is submitted."""

    def __init__(self, name: str, shared: Shared, threads: int):
        self.name, self.shared = name, shared
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-ahead")
        self.futures = list[Future]()
        """All phases that were submitted."""

    def phase(
        self,
        planned: Planned,
        make: Callable[..., dict],
        result: Callable[[Path], Any],
        *inputs: Any,
        threads: ThreadPoolExecutor | None = None,
        ahead: Callable[..., Any] | None = None,
    ) -> Future:
        """Do a phase once its ``inputs`` are there, futures among them, unless it is finished.

        ``make(folder, facts, *inputs)`` writes the files of the phase and returns its ``metrics.json``: ``records``,
        the lines of metrics.jsonl, and for training ``steps`` and ``proof``; ``facts`` go to the trace. The future
        holds ``result(folder)``. In a plan the phase is listed, and its future never ends.

        ``ahead(folder, *inputs)`` does what needs no policy, the first input, once the others are there: beside the
        phases before this one. ``make(folder, facts, policy, done)`` gets what it returned in their place.
        """
        made_by = self.shared.made_by
        needs = tuple(made_by[one] for one in inputs if isinstance(one, Future))
        self.shared.planned.append(replace(planned, needs=needs))
        if self.shared.run is None:
            future = Future()
        else:
            future = self._submit(planned, make, result, inputs, threads or self._threads, ahead)
        made_by[future] = planned.name
        return future

    def _submit(
        self, planned: Planned, make: Any, result: Any, inputs: Any, threads: ThreadPoolExecutor, ahead: Any
    ) -> Future:
        run, name = self.shared.run, planned.name

        def early(others: Any) -> Any:
            if run.done(name):
                return None
            given = _known(others)
            return ahead(run.begin(name), *given)

        def work() -> Any:
            given = _known(inputs)
            return result(self._do(planned, lambda folder, facts: make(folder, facts, *given), begun=bool(ahead)))

        if ahead:
            inputs = (inputs[0], self._ahead.submit(early, inputs[1:]))
        future = threads.submit(work)
        self.futures.append(future)
        if self.shared.config.placement.sequential:
            signals.wait_for([future], meanwhile=self.shared.check_held)
        return future

    def _do(self, planned: Planned, make: Callable[[Path, dict], dict], begun: bool) -> Path:
        """The folder of the phase, finished."""
        run, name = self.shared.run, planned.name
        if new := not run.done(name):
            folder = run.folder(name) if begun else run.begin(name)
            self.shared.progress.start(self.name, name, planned.batches, planned.unit)
            with run.trace.phase(name, self.name) as facts:
                run.finish(name, make(folder, facts))
            self.shared.progress.finish(name)
        self.shared.on_finish(name, new)
        return run.folder(name)

    def close(self) -> None:
        """Drop the phases that have not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._ahead.shutdown(wait=False, cancel_futures=True)


def _known(inputs: Iterable[Any]) -> list[Any]:
    """The inputs, once the phases that make them are finished."""
    return [one.result() if isinstance(one, Future) else one for one in inputs]


class Once:
    """Makes something expensive when it is first asked for, from any thread."""

    def __init__(self, make: Callable[[], Any]):
        self._make, self._lock, self.made = make, threading.Lock(), None

    def __call__(self) -> Any:
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made
