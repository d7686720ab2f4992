"""The board between the driver and the training workers: it hands phases on, and results and heartbeats back."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

#: Seconds between two heartbeats: a step of a small model is shorter than a call of Ray.
_BEAT = 0.1


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
    """Hash of what decides its numbers, whatever the number of workers: a checkpoint of another key is not taken."""


class Board:
    """Actor that hands phases to the workers and results to the driver; phases are numbered in the order of posting."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.results: list[dict] = []
        self.beat: dict[str, Any] = {"time": time.time()}
        self.closed = False
        self.dismissed = False
        self.there = False
        """Whether a worker group has come up and lost nobody since."""
        self.deaths, self.words = 0, ""
        """Workers that died since a phase was finished, and what was last said of one."""
        self._waiting: dict[int, object] = {}
        self._news = asyncio.Condition()

    async def post(self, phase: Phase) -> int:
        """Append a phase; its number. Who died before is not held against it."""
        self.deaths = 0
        await self._tell(lambda: self.phases.append(phase))
        return len(self.phases) - 1

    async def close(self) -> None:
        """Let the workers end after what they do now."""
        await self._tell(lambda: setattr(self, "closed", True))

    async def dismiss(self) -> None:
        """Let the workers end, those that still come up too; a new group goes on."""
        await self._tell(lambda: setattr(self, "dismissed", True))

    async def open(self) -> None:
        """Expect a new group."""
        self.dismissed = self.there = False

    async def lose(self, words: str) -> None:
        """Hear that a worker died: Ray Train makes the group anew."""
        self.there, self.deaths, self.words = False, self.deaths + 1, words

    async def next(self) -> int:
        """Number of the first unfinished phase: where a new worker group goes on."""
        self.there, self.beat = True, {**self.beat, "time": time.time()}
        return len(self.results)

    async def take(self, number: int, rank: int) -> Phase | None:
        """Wait for a phase and return it; None if the workers are to end."""
        mine = self._waiting[rank] = object()

        def over() -> bool:  # a worker that died still waits here until another one has its rank
            return self.closed or self.dismissed or self._waiting[rank] is not mine

        async with self._news:
            self._news.notify_all()
            await self._news.wait_for(lambda: over() or len(self.phases) > number)
            return None if over() else self.phases[number]

    async def report(self, **facts: Any) -> None:
        """Heartbeat of a running phase, from rank 0."""
        self.beat = {"time": time.time(), **facts}

    async def finish(self, number: int, result: dict) -> None:
        """Take the result of a phase: its metrics, the ``error`` in its numbers, or what ``stopped`` the storage."""
        if number == len(self.results):
            self.deaths = 0
            await self._tell(lambda: self.results.append(result))

    async def poll(self, number: int, seconds: float) -> tuple[dict | None, dict, bool, int, str]:
        """The result of a phase, or None after ``seconds``; the last heartbeat, whether a group is there, how many
        workers died since a phase was finished, and what was said of the last."""
        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: len(self.results) > number), seconds)
            except TimeoutError:
                return None, self.beat, self.there, self.deaths, self.words
            return self.results[number], self.beat, self.there, 0, ""

    async def _tell(self, change: Any) -> None:
        async with self._news:
            change()
            self._news.notify_all()


class Heartbeat:
    """What a worker says of the phase that it is in; rank 0 tells the board, the first word and then the last known."""

    def __init__(self, board: Any, rank: int):
        self._board, self._speaks = board, rank == 0
        self._phase, self._told = "", 0.0

    def __call__(self, *, phase: str, **facts: Any) -> None:
        now = time.monotonic()
        if self._speaks and (phase != self._phase or now - self._told >= _BEAT):
            self._phase, self._told = phase, now
            self._board.report.remote(phase=phase, **facts)
