"""Requests that wait while others are computed are answered together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Together(Generic[A, B]):
    """Batches of what has come since the last one, so a request never waits for others that may come.

    Ray Serve's own batches are closed by time, also while nothing is free to compute them, so under load they are
    many and small. Here a batch is closed when one of ``lanes`` is free, with at most ``most`` requests.
    """

    def __init__(self, answer: Callable[[list[A]], Awaitable[list[B]]], most: int, lanes: int):
        self.answer, self.most = answer, most
        self._waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._free, self._tasks = lanes, set[asyncio.Task]()

    async def ask(self, asked: A) -> B:
        """Return the answer of one request, or raise what the batch of it raised."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._free:
            self._free -= 1
            task = asyncio.create_task(self._lane())
            self._tasks.add(task)  # the loop holds tasks weakly
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _lane(self) -> None:
        await asyncio.sleep(0)  # those that came at the same time
        try:
            while batch := self._next():
                futures = [future for _, future in batch]
                try:
                    answers = await self.answer([asked for asked, _ in batch])
                    for future, answer in zip(futures, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
                except Exception as error:
                    for future in futures:
                        if not future.done():
                            future.set_exception(error)
        finally:
            self._free += 1

    def _next(self) -> list[tuple[A, asyncio.Future[B]]]:
        batch = []
        while self._waiting and len(batch) < self.most:
            asked, future = self._waiting.popleft()
            if not future.done():  # nobody waits for it any more
                batch.append((asked, future))
        return batch
