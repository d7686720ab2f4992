"""The pool's record of its generators: the parts that each has, and which one may take the next part."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from rayrec.cluster.watchdog import Watchdog
from rayrec.generation.engine import Answer, Part


@dataclass(eq=False)
class Job:
    """One request; a part is made when an actor is free for it, so that the prompts never all lie in memory."""

    urgent: bool
    part_of: Callable[[int], Part]
    todo: deque[int]
    """Parts without an actor, those of dead actors first."""
    answers: SimpleQueue[tuple[int, list[list[Answer]]] | BaseException] = field(default_factory=SimpleQueue)
    deaths: Counter[int] = field(default_factory=Counter)
    """Actors that died, by part."""


@dataclass(frozen=True, eq=False)
class Task:
    """A part that an actor works on, without its prompts, which Ray holds."""

    job: Job
    index: int
    part: Part


@dataclass(eq=False)
class Slot:
    """The place of one generator: its current actor and its tasks, none while the actor starts or is free."""

    index: int
    watchdog: Watchdog
    actor: Any = None
    up: bool = False
    """Whether its actor has started."""
    tasks: list[Task] = field(default_factory=list)
    deaths: int = 0
    """Actors in a row that answered nothing."""
    starved: int = 0
    """Of these, those that were killed for want of memory."""
    held: int = 0
    """Bytes of memory of the actor at its last answer."""

    @property
    def name(self) -> str:
        return f"generator {self.index}"

    @property
    def place(self) -> str:
        if not self.tasks:
            return "at its start"
        part, more = self.tasks[0].part, len(self.tasks) - 1
        return f"in {part.phase} part {part.number}" + (f" and {more} more" if more else "")


class Free:
    """The slots that may take a part: those with the fewest parts first, of these the one that has waited longest."""

    def __init__(self, most: int):
        self._by_tasks: list[dict[Slot, None]] = [{} for _ in range(most)]

    def settle(self, slot: Slot) -> None:
        """Note a slot whose actor or number of tasks has changed."""
        for slots in self._by_tasks:
            slots.pop(slot, None)
        if slot.up and len(slot.tasks) < len(self._by_tasks):
            self._by_tasks[len(slot.tasks)][slot] = None

    def first(self) -> Slot | None:
        """Return the slot that takes the next part; it stays here until it is settled."""
        return next((slot for slots in self._by_tasks for slot in slots), None)

    def __bool__(self) -> bool:
        return any(self._by_tasks)
