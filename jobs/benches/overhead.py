"""What rayrec adds to Ray: parts of prompts through the generators' pool, against bare calls of the same actors.

The engine writes one title at once. 1,000 logical generators live in at most 16 processes; a part has 64 prompts of 120
tokens, made when it is asked for. ``memory`` is what the driver takes from the first part on.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benches import peak, reset_peak

PACKAGES, SIZE, COLUMNS, UNIT = ("ray",), "rows", ("logical", "processes"), "parts of 64 prompts per second"
SIZE_OF_PART, TOKENS = 64, 120


def cases(quick: bool, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    plan = [(6400, 8, 2)] if quick else [(10**4, 1000, 16), (10**5, 1000, 16), (10**6, 1000, 16)]
    names = ("rows", "logical", "processes")
    return [({**dict(zip(names, one, strict=True)), "dtype": "", "scratch": str(scratch)}, ["ray"]) for one in plan]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != "scratch"}


class NoOp:
    """A generator without an engine."""

    def ready(self) -> dict:
        return {"pid": os.getpid()}

    def answer(self, part: Any) -> tuple[list[list[Any]], dict]:
        from rayrec.generators import Answer

        now = time.time()
        made = [[Answer("A title of some length (1999)", -1.5)] for _ in part.prompts]
        return made, {"start": now, "end": now, "generator_pid": os.getpid(), "tokens": 0}


def measure(contender: str, rows: int, logical: int, processes: int, dtype: str, scratch: str) -> dict[str, Any]:
    """Parts per second, the driver's memory from the first part on, and how many answers came."""
    import ray

    from rayrec.generators import Part

    runtime = {"env_vars": {"PYTHONPATH": os.pathsep.join(os.sys.path)}}  # pyright: ignore[reportAttributeAccessIssue]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=runtime)
    engine: Any = ray.remote(NoOp)
    actors = [engine.options(num_cpus=0, max_concurrency=2).remote() for _ in range(min(processes, logical))]
    ray.get([actor.ready.remote() for actor in actors])

    def part_of(i: int) -> Part:
        prompts = tuple(tuple(range(i + row, i + row + TOKENS)) for row in range(SIZE_OF_PART))
        return Part("00/evaluate/beams", i, "00/sft", scratch, prompts, "beams", 10)

    try:
        return {"ours": ours, "ray": bare}[contender](actors, part_of, rows // SIZE_OF_PART, logical, scratch)
    finally:
        ray.shutdown()


def ours(actors: list[Any], part_of: Any, count: int, logical: int, scratch: str) -> dict[str, Any]:
    """Through the pool that a run has."""
    from rayrec.config import Config
    from rayrec.generators import GeneratorPool
    from rayrec.runs import Trace

    class Pool(GeneratorPool):
        """A pool whose generators share actors."""

        def _actor(self, index: int) -> Any:
            return actors[index % len(actors)]

        def _bury(self, actor: Any) -> None:
            pass

    config = Config()
    config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, generators=logical))
    setup: Any = SimpleNamespace(config=config, gpu=False)
    trace = Trace(Path(scratch) / "trace.json")
    pool = Pool(setup, trace, None)  # pyright: ignore[reportArgumentType]
    _ = list(pool.ask(logical, part_of))  # all are up
    before, begun = reset_peak(), time.perf_counter()
    got = sum(len(answers) for _, answers in pool.ask(count, part_of))
    seconds = time.perf_counter() - begun
    pool.close(True)
    return {"rate": count / seconds, "memory": max(1, peak() - before), "answers": got}


def bare(actors: list[Any], part_of: Any, count: int, logical: int, scratch: str) -> dict[str, Any]:
    """As few words as Ray lets one write: a call for every part, ``logical`` of them on the way."""
    import ray

    for i in range(logical):
        ray.get(actors[i % len(actors)].answer.remote(part_of(i)))
    before, begun = reset_peak(), time.perf_counter()
    open_, got = [], 0
    for i in range(count):
        if len(open_) == logical:
            answers, _ = ray.get(open_.pop(0))
            got += len(answers)
        open_.append(actors[i % len(actors)].answer.remote(part_of(i)))
    for answers, _ in ray.get(open_):
        got += len(answers)
    seconds = time.perf_counter() - begun
    return {"rate": count / seconds, "memory": max(1, peak() - before), "answers": got}
