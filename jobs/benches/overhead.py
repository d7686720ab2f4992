"""Overhead over Ray: parts of prompts through the generators' pool, against bare calls of the same actors.

The engine writes one title at once. 1,000 logical generators live in at most 16 processes; a part has 64 prompts of 120
tokens, made on demand. ``board`` measures training steps that the first worker reports to the trainers' board as in a
run, against one call per step of an actor that ignores it; its rows are steps. ``memory`` is the driver's growth from
the first call on.
"""

from __future__ import annotations

import dataclasses
import os
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benches import own_cluster, peak, reset_peak

PACKAGES, SIZE, COLUMNS = ("ray",), "rows", ("what", "logical", "processes")
UNIT, FACTS, PAIRS = "parts of 64 prompts, or steps, per second", ("answers",), ()
SIZE_OF_PART, TOKENS = 64, 120


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    plan = [*(("parts", rows, 1000, 16) for rows in (10**4, 10**5, 10**6, 10**7)), ("board", 10**5, 1000, 1)]
    if args.quick:
        plan = [("parts", 6400, 8, 2)]
    names = ("what", "rows", "logical", "processes")
    return [({**dict(zip(names, one, strict=True)), "dtype": "", "scratch": str(scratch)}, ["ray"]) for one in plan]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != "scratch"}


class NoOp:
    """A generator without an engine."""

    def ready(self) -> dict:
        return {"pid": os.getpid(), "memory": 0}

    def answer(self, part: Any) -> tuple[list[list[Any]], dict]:
        from rayrec.generation.engine import Answer

        now = time.time()
        made = [[Answer([7] * 8, "A title of some length (1999)", -1.5)] for _ in part.prompts]
        facts = {"start": now, "end": now, "generator_pid": os.getpid(), "tokens": 0, "memory": 0, "proofs": []}
        return made, facts


class Silent:
    """A board that ignores reports."""

    def report(self, **facts: Any) -> None:
        pass


def measure(
    contender: str, what: str, rows: int, logical: int, processes: int, dtype: str, scratch: str
) -> dict[str, Any]:
    """Parts or reports per second, the driver's memory from the first on, and how many answers came."""
    with own_cluster():
        if what == "board":
            return board(contender, rows, logical)
        return parts(contender, rows // SIZE_OF_PART, logical, processes, scratch)


def parts(contender: str, count: int, logical: int, processes: int, scratch: str) -> dict[str, Any]:
    import ray

    from rayrec.generation.engine import Part

    engine: Any = ray.remote(NoOp)
    actors = [engine.options(num_cpus=0, max_concurrency=2).remote() for _ in range(min(processes, logical))]
    ray.get([actor.ready.remote() for actor in actors])

    def part_of(i: int) -> Part:
        prompts = [list(range(i + row, i + row + TOKENS)) for row in range(SIZE_OF_PART)]
        return Part("00/evaluate/beams", i, "00/sft", scratch, prompts, "beams", 10)

    return {"ours": ours, "ray": bare}[contender](actors, part_of, count, logical, scratch)


def timed(count: int, warm: int, answers: Callable[[int], Iterator[list]]) -> dict[str, Any]:
    """Take ``answers(count)`` as they come and keep none, once ``warm`` of them have come."""
    before = reset_peak()
    for _ in answers(warm):
        pass
    begun = time.perf_counter()
    got = sum(map(len, answers(count)))
    seconds = time.perf_counter() - begun
    return {"rate": count / seconds, "memory": max(1, peak() - before), "answers": got}


def in_flight(call: Callable[[int], Any], count: int, most: int) -> Iterator[Any]:
    """Answers of ``count`` calls in turn, at most ``most`` of them in flight."""
    import ray

    open_: deque[Any] = deque()
    for i in range(count):
        if len(open_) == most:
            yield ray.get(open_.popleft())
        open_.append(call(i))
    while open_:
        yield ray.get(open_.popleft())


def ours(actors: list[Any], part_of: Any, count: int, logical: int, scratch: str) -> dict[str, Any]:
    """Through the pool that a run has."""
    pool = pool_of(actors, logical, Path(scratch))
    found = timed(count, logical, lambda n: (answers for _, answers in pool.ask(n, part_of)))
    pool.close(True)
    return found


def pool_of(actors: list[Any], logical: int, scratch: Path) -> Any:
    """The pool that a run has, with ``logical`` generators that share ``actors``."""
    from rayrec.config import Config
    from rayrec.generation.engine import Engine
    from rayrec.generation.pool import GeneratorPool
    from rayrec.runs.trace import Trace

    class Pool(GeneratorPool):
        """A pool whose generators share actors."""

        def _actor(self, index: int) -> Any:
            return actors[index % len(actors)]

        def _kill(self, actor: Any) -> None:
            pass

    config = Config()
    config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, generators=logical))
    setup: Any = SimpleNamespace(config=config, gpu=False, engine=Engine)
    return Pool(setup, Trace(scratch / "trace.json"), None)  # pyright: ignore[reportArgumentType]


def bare(actors: list[Any], part_of: Any, count: int, logical: int, scratch: str) -> dict[str, Any]:
    """Plain Ray: one call per part, ``logical`` of them in flight."""

    def call(i: int) -> Any:
        return actors[i % len(actors)].answer.remote(part_of(i))

    return timed(count, logical, lambda n: (answers for answers, _ in in_flight(call, n, logical)))


def board(contender: str, count: int, most: int) -> dict[str, Any]:
    """Steps that the first training worker reports, ``most`` calls in flight."""
    import ray

    from rayrec.training.board import Board, Heartbeat

    # As many calls at once as TrainGroup allows two workers.
    kind, calls = (Board, 68) if contender == "ours" else (Silent, 1)
    actor: Any = ray.remote(kind).options(num_cpus=0, max_concurrency=calls).remote()
    beat = Heartbeat(actor, rank=0)

    def facts(i: int) -> dict[str, Any]:
        return {"phase": "00/prefer", "step": i + 1, "steps": count, "loss": 0.5}

    def ours(n: int) -> Iterator[list]:
        for i in range(n):
            yield [beat(**facts(i))]
        ray.get(actor.poll.remote(0, 0.0))

    def bare(n: int) -> Iterator[list]:
        return ([answer] for answer in in_flight(lambda i: actor.report.remote(**facts(i)), n, most))

    return timed(count, most, ours if contender == "ours" else bare)
