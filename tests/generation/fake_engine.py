"""An engine without a model, which fails in every way once: added from outside, as any engine is."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import torch

from rayrec.generation.engine import Engine, Part, Scored, Setup


class LostError(Exception):
    """After this the engine is of no use."""


class FakeEngine(Engine):
    """Answers each prompt with its own tokens; files in the folder of the base model note what has happened."""

    modes = frozenset({"greedy"})
    died = (LostError,)

    def __init__(self, setup: Setup):
        self.folder = Path(setup.base)
        self.version = ""

    def load(self, version: str, folder: str) -> None:
        self.version = version

    def answer(self, part: Part) -> list[list[Scored]]:
        if part.phase == "full":
            raise OSError(28, "No space left on device")
        if part.phase == "deadly":
            os._exit(1)
        if part.phase == "refused":
            raise ValueError("no such model. Take another.")
        if part.phase == "vast":
            torch.empty(1 << 50)  # a petabyte
        if part.phase == "wrong":
            raise ArithmeticError("part is wrong")
        if part.number == 1 and self._first("engine"):
            raise LostError("no connection")
        if part.number == 2 and self._first("silence"):
            time.sleep(60)
        if part.number == 3 and self._first("exit"):
            os._exit(1)
        assert self.version == part.version
        return [[(prompt, -float(part.seed))] for prompt in part.prompts]

    def sleep(self) -> None:
        self._first("slept")
        if (self.folder / "stuck").exists():
            raise ArithmeticError("memory that did not come back")

    def wake(self) -> None:
        self._first("woken")

    def _first(self, event: str) -> bool:
        """Note an event; whether it has not happened before, in any actor."""
        try:
            (self.folder / event).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Batching(FakeEngine):
    """Answers three parts at once, each in 0.3 s however many there are, and dies once; notes how many it had."""

    together = frozenset({"greedy"})

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self.lock, self.inside = threading.Lock(), 0

    @classmethod
    def in_flight(cls, gpu: bool) -> int:
        return 3

    def answer(self, part: Part) -> list[list[Scored]]:
        with self.lock:
            self.inside += 1
            self._first(f"inside-{self.inside}")
        time.sleep(0.3)
        if part.number == 14 and self._first("batch-exit"):
            os._exit(1)
        with self.lock:
            self.inside -= 1
        assert self.version == part.version  # a load waits until all parts of another policy are answered
        return [[(prompt, -float(part.seed))] for prompt in part.prompts]
