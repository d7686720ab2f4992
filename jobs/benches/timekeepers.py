"""Generators and training workers that only keep time, for benches/scale.py: real actors of Ray, asked as real ones."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any

#: Seconds of a phase in which no step is made: weights are loaded, DeepSpeed starts, the policy is written.
AROUND = 2.0


class Engines:
    """All generators of a bench, in one process.

    A part takes ``own`` seconds of an engine, one part's after the other's, and an answer comes ``wait`` seconds after
    it is asked for at the earliest, in which its longest text is written; so an engine that has several parts is never
    idle.
    """

    def __init__(self, seconds: dict[str, tuple[float, float]], titles: list[str], size: int):
        self.seconds, self.titles, self.size = seconds, titles, size
        self.free = defaultdict[int, float](float)
        self.inside = defaultdict[int, int](int)
        self.since = dict[int, float]()
        self.busy = defaultdict[str, dict[int, float]](lambda: defaultdict(float))

    async def ready(self, index: int) -> dict[str, Any]:
        """Return facts as a generator does."""
        return {"pid": index, "memory": 0, "nodes": [""]}

    async def answer(self, index: int, part: Any) -> tuple[list[list[Any]], dict[str, Any]]:
        """Return answers to a part once its time is over: titles of the catalogue."""
        from rayrec.generation.engine import Answer

        own, wait = (one * len(part.prompts) / self.size for one in self.seconds[part.mode])
        begun = time.time()
        self.free[index] = max(begun, self.free[index]) + own
        if not self.inside[index]:
            self.since[index] = begun
        self.inside[index] += 1
        await asyncio.sleep(max(self.free[index], begun + wait) - time.time())
        self.inside[index] -= 1
        end, phase = time.time(), "/".join(part.phase.split("/")[:2])
        self.busy[phase][index] += end - self.since[index]
        self.since[index] = end
        names = [self.titles[(part.number + i) % len(self.titles)] for i in range(len(part.prompts))]
        made = [[Answer([7] * 8, name, -1.5)] * part.n for name in names]
        facts = {"start": begun, "end": end, "generator_pid": index, "tokens": 0, "memory": 0, "proofs": []}
        return made, facts

    async def times(self) -> dict[str, dict[int, float]]:
        """Seconds in which each engine had a part, by phase."""
        return {phase: dict(found) for phase, found in self.busy.items()}


class Workers:
    """All training workers of a bench, in one process: they take phases from the board, and report to it."""

    def __init__(self, board: Any, seconds: dict[str, float]):
        self.board, self.seconds, self.begun = board, seconds, dict[str, float]()

    async def work(self, count: int) -> None:
        """Do phases until the board closes."""
        await asyncio.gather(*(self._one(rank) for rank in range(count)))

    async def _one(self, rank: int) -> None:
        number = await self.board.next.remote()
        while (phase := await self.board.take.remote(number, rank)) is not None:
            begun, step = time.time(), self.seconds[phase.kind]
            end = begun + phase.steps * step + AROUND
            while rank == 0 and time.time() < end - 0.1:
                done = int(max(0.0, time.time() - begun - AROUND) / step)
                self.board.report.remote(phase=phase.name, step=done, steps=phase.steps, loss=0.5, memory=0)
                await asyncio.sleep(0.1)
            await asyncio.sleep(max(0.0, end - time.time()))
            if rank == 0:
                steps = [{"step": i + 1, "loss": 0.5, "lr": 0.0} for i in range(phase.steps)]
                facts = {"nodes": [""], "begun": begun, "ended": time.time()}
                await self.board.finish.remote(number, {"steps": steps, "facts": facts, "proof": None})
            number += 1
