"""Turns at an engine, and which generator gets the next part."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from rayrec.cluster.watchdog import Watchdog
from rayrec.generation.engine import Part
from rayrec.generation.gate import Gate
from rayrec.generation.slots import Free, Job, Slot, Task


def test_threads_of_one_key_are_in_together_and_others_wait_in_their_order() -> None:
    gate, both, log = Gate(), threading.Barrier(2), list[str]()
    begun = threading.Event()

    def together(name: str) -> None:
        with gate.enter("a"):
            both.wait(10)  # passes only while both are in
            begun.wait(10)
            log.append(name)

    def alone(name: str, key: str | None) -> None:
        with gate.enter(key):
            log.append(name)

    with ThreadPoolExecutor(6) as threads:
        first = [threads.submit(together, "a") for _ in range(2)]
        while both.n_waiting == 1 or gate._inside < 2:
            pass
        later = []
        for name, key in (("none", None), ("b", "b"), ("again", "a")):
            later.append(threads.submit(alone, name, key))
            while len(gate._waiting) < len(later):
                pass
        begun.set()
        for one in [*first, *later]:
            one.result(10)
    # The last one has the key of those inside, and waits behind the others all the same.
    assert log == ["a", "a", "none", "b", "again"]


def test_an_error_inside_gives_the_turn_away() -> None:
    gate = Gate()
    for _ in range(2):
        try:
            with gate.enter():
                raise ArithmeticError
        except ArithmeticError:
            pass
    with gate.enter("x"):
        assert gate._inside == 1


def test_the_next_part_goes_where_the_fewest_are() -> None:
    slots, free = [Slot(i, Watchdog("", 1.0)) for i in range(3)], Free(2)
    job, part = Job(False, lambda i: part, [0]), Part("01/evaluate", 0, "base", "", [], "greedy")  # pyright: ignore[reportArgumentType]
    given = []
    assert free.first() is None and not free
    for slot in slots:
        slot.up = True
        free.settle(slot)
    while (slot := free.first()) is not None:
        slot.tasks.append(Task(job, 0, part))
        free.settle(slot)
        given.append(slot.index)
    assert given == [0, 1, 2, 0, 1, 2]
    slots[1].tasks.pop()
    free.settle(slots[1])
    assert free.first() is slots[1] and slots[1].place == "in 01/evaluate part 0"
    assert slots[2].place == "in 01/evaluate part 0 and 1 more"
