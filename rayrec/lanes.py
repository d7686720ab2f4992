"""What the two lanes of a run share: phases in threads, as futures, each done once.

A lane's methods return at once, with a future on a finished phase; a phase that is finished already is not done again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrec.config import Config
from rayrec.data import Dataset
from rayrec.runs.run import Run


@dataclass(frozen=True)
class Policy:
    """A version of the policy: the phase that made it, and its folder."""

    version: str
    folder: Path


@dataclass(frozen=True)
class Shared:
    """What both lanes know."""

    config: Config
    data: Dataset
    run: Run
    template: Any
    threads: int
    """CPU threads of a process beside others; ``all_threads`` of one that works alone."""
    all_threads: int
    on_finish: Callable[[str, bool], None]
    """Told the name of every finished phase, and whether it was finished just now."""
    progress: Any
    """console.LaneProgress."""
    check_held: Callable[[], None] = lambda: None
    """Raises once another driver has the run."""
    gpu: bool = False


class Lane:
    """Runs phases in threads, as futures; ``--sequential`` waits for each before the next is submitted."""

    def __init__(self, name: str, shared: Shared, threads: int):
        self.name, self.shared = name, shared
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.futures = list[Future]()
        """All that was submitted."""

    def submit(self, work: Callable[..., Any], *inputs: Any, threads: ThreadPoolExecutor | None = None) -> Future:
        """Run ``work`` on the inputs, futures among them waited for first; in ``threads``, or the lane's own."""

        def resolved() -> Any:
            return work(*(value.result() if isinstance(value, Future) else value for value in inputs))

        future = (threads or self._threads).submit(resolved)
        self.futures.append(future)
        if self.shared.config.placement.sequential:
            while not wait([future], timeout=0.5).done:  # its error is raised where the run waits for all futures
                self.shared.check_held()
        return future

    def phase(self, name: str, total: int, unit: str, make: Callable[[Path, dict], dict]) -> Path:
        """Do a phase unless it is finished: ``make(folder, facts)`` writes its files and returns its ``metrics.json``.

        That holds ``records``, the lines of metrics.jsonl, and for training ``steps``. ``facts`` go to the trace.
        """
        run = self.shared.run
        if new := not run.done(name):
            folder = run.begin(name)
            self.shared.progress.start(self.name, name, total, unit)
            with run.trace.phase(name, self.name) as facts:
                run.finish(name, make(folder, facts))
            self.shared.progress.finish(name)
        self.shared.on_finish(name, new)
        return run.folder(name)

    def close(self) -> None:
        """Drop what waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Once:
    """Makes something expensive when it is first asked for, from any thread."""

    def __init__(self, make: Callable[[], Any]):
        self._make, self._lock, self.made = make, threading.Lock(), None

    def __call__(self) -> Any:
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made
