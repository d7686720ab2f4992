"""The actor between the driver and the training workers: it hands out phases and takes results and heartbeats.

Ray Train needs 15 to 20 s to start a group, so one group serves the whole run: its workers take phase after phase from
here, and a group that replaces a dead one goes on at the first unfinished phase.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from rayrec.cluster.memory import gigabytes, held, machine, out_of_memory

#: Least seconds between two heartbeats: a step of a small model is shorter than a call of Ray.
_INTERVAL = 0.1


@dataclass(frozen=True)
class Phase:
    """One phase of training, wholly described: equal phases on equal rows give equal weights."""

    name: str
    kind: str
    """`pretrain`, `sft` or `prefer`."""
    rows: str
    """Parquet file of schema.PREFERENCES, padded to whole global batches."""
    start: str
    """Policy folder that it starts from."""
    out: str
    """Policy folder that it writes."""
    steps: int
    batch: int
    lr: float
    warmup: int
    dropout: float
    threads: int
    items: str = ""
    """Folder of the SASRec whose item vectors the policy gets in this phase."""
    key: str = ""
    """Hash of the settings and rows that decide its numbers, whatever the number of workers: a checkpoint of another
    key is not used."""
    schedule: str = "linear"
    """The learning rate after the warm-up: `linear` or `cosine` decay, or `constant`."""
    sft_loss: str = ""
    """All that decides the loss of an SFT that reads the catalogue; empty for the plain one."""


class Status(NamedTuple):
    """An answer to the driver that waits for a phase."""

    result: dict | None
    """None while the phase is not finished."""
    heartbeat: dict[str, Any]
    """The last one: ``time`` and the facts of :meth:`Board.report`."""
    up: bool
    """Whether a group of workers has started and lost none since."""
    deaths: int
    """Workers that died since a phase was finished."""
    reason: str
    """Why the last of them died."""
    memory: str = ""
    """Set where it was for want of memory: whose and how much."""


class Board:
    """Actor that hands phases to the workers and results to the driver; phases are numbered in the order of posting.

    A phase is any object that can be pickled.
    """

    def __init__(self) -> None:
        self.phases: list[Any] = []
        self.results: list[dict] = []
        self.heartbeat: dict[str, Any] = {"time": time.time()}
        self.closed = self.dismissed = self.up = False
        self.deaths, self.reason, self.memory = 0, "", ""
        self._waiting: dict[int, object] = {}
        self._changed = asyncio.Condition()

    async def post(self, phase: Any) -> int:
        """Append a phase; returns its number. Deaths are counted from 0 again."""
        self.deaths = 0
        await self._change(lambda: self.phases.append(phase))
        return len(self.phases) - 1

    async def close(self) -> None:
        """Let the workers end after their current phase."""
        await self._change(lambda: setattr(self, "closed", True))

    async def dismiss(self) -> None:
        """Let the workers of this group end, also those that still start; a new group goes on."""
        await self._change(lambda: setattr(self, "dismissed", True))

    async def open(self) -> None:
        """Expect a new group."""
        self.dismissed = self.up = False

    async def register_death(self, reason: str, memory: str = "") -> None:
        """Count a worker that died: Ray Train replaces the group."""
        self.up, self.deaths, self.reason, self.memory = False, self.deaths + 1, reason, memory

    async def next(self) -> int:
        """Number of the first unfinished phase, where a new group goes on."""
        self.up, self.heartbeat = True, {**self.heartbeat, "time": time.time()}
        return len(self.results)

    async def take(self, number: int, rank: int) -> Any:
        """Wait for a phase and return it; None if the worker shall end."""
        mine, former = object(), self._waiting.get(rank)
        self._waiting[rank] = mine

        def over() -> bool:  # the call of a dead worker waits here until another worker has its rank
            return self.closed or self.dismissed or self._waiting.get(rank) is not mine

        async with self._changed:
            if former is not None:  # else hundreds of workers that come at once would wake each other
                self._changed.notify_all()
            await self._changed.wait_for(lambda: over() or len(self.phases) > number)
            phase = None if over() else self.phases[number]
            if self._waiting.get(rank) is mine:
                del self._waiting[rank]
            return phase

    async def report(self, **facts: Any) -> None:
        """Heartbeat of a running phase, from rank 0."""
        self.heartbeat = {"time": time.time(), **facts}

    async def finish(self, number: int, result: dict) -> None:
        """Take the result of a phase: its metrics, the ``error`` in its numbers, why the storage ``stopped`` it, or an
        error that would come again (:func:`give_up`)."""
        if number == len(self.results):
            self.deaths = 0
            await self._change(lambda: self.results.append(result))

    async def poll(self, number: int, seconds: float) -> Status:
        """The status of a phase, once it is finished or after so many seconds."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: len(self.results) > number), seconds)
            except TimeoutError:
                return Status(None, self.heartbeat, self.up, self.deaths, self.reason, self.memory)
            return Status(self.results[number], self.heartbeat, self.up, 0, "")

    async def _change(self, change: Callable[[], None]) -> None:
        async with self._changed:
            change()
            self._changed.notify_all()


def take_phases(board: Any, rank: int) -> Iterator[tuple[int, Any]]:
    """The numbers and phases that a worker does, until the board lets it end."""
    import ray

    number: int = ray.get(board.next.remote())
    while (phase := ray.get(board.take.remote(number, rank))) is not None:
        yield number, phase
        number += 1


def give_up(error: Exception, board: Any, rank: int) -> None:
    """End a worker by an error that would come again in another group: the driver reads it in place of a result.

    It is ``memory`` that this process did not get, a ``refused`` input, or something ``broken``, with its traceback in
    the worker's log.

    Raises:
        Exception: ``error`` itself, where another group may do better: of the connection between processes.
    """
    import ray
    from ray.exceptions import RayError
    from safetensors import SafetensorError

    again = (TypeError, LookupError, AttributeError, ImportError, NotImplementedError, AssertionError, SafetensorError)
    if line := out_of_memory(error):
        node = ray.util.get_node_ip_address()
        result = {"memory": f"training worker {rank} on {node} held {gigabytes(held())}: {line} ({machine()})"}
    elif isinstance(error, ValueError) and not isinstance(error, RayError):
        result = {"refused": str(error)}
    elif isinstance(error, again):
        traceback.print_exception(error)
        result = {"broken": f"{type(error).__name__}: {error}"}
    else:
        raise error
    ray.get(board.finish.remote(ray.get(board.next.remote()), result))
    for _ in take_phases(board, rank):  # the end of this process would count as a death
        pass


class Heartbeat:
    """Progress reports of a worker: rank 0 sends the first of a phase, then the latest, ten a second at most.

    With each goes the memory that its process holds, in bytes.
    """

    def __init__(self, board: Any, rank: int):
        self._board, self._sends = board, rank == 0
        self._phase, self._sent = "", 0.0

    def __call__(self, *, phase: str, **facts: Any) -> None:
        now = time.monotonic()
        if self._sends and (phase != self._phase or now - self._sent >= _INTERVAL):
            self._phase, self._sent = phase, now
            self._board.report.remote(phase=phase, **facts, memory=held())
