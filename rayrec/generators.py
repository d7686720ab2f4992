"""The generation lane: a pool of engine actors, alive for the whole run, that answer prompts part by part.

A part is a fixed number of prompts, answered whole by one actor in one call. Before each part the actor loads the
policy version that the part names, empties the prefix cache and seeds the generator from (seed, phase, part), so that a
part made again, by whichever actor and after whatever traffic, is the same part bit for bit (on CPUs of one type).
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rayrec.engines import BeamEngine, Guide, Mode, Setup, TorchEngine, VllmEngine
from rayrec.reserve import Reserved, generator_bundles
from rayrec.runs import Stopped
from rayrec.seeds import seed_of


@dataclass(frozen=True)
class Part:
    """Some prompts of one phase, and what is asked for them."""

    phase: str
    number: int
    version: str
    """Name of the policy, such as ``01/prefer``."""
    folder: str
    """Its policy folder."""
    prompts: tuple[tuple[int, ...], ...]
    mode: Mode
    n: int = 1
    """Samples, or width of the beam."""
    choices: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """Answers to score for each prompt, in mode ``score``."""
    guide: Guide | None = None
    """Who has a word besides the policy, in mode ``d3``."""


@dataclass(frozen=True)
class Answer:
    """One generated text with its log-probability (EOS included, nats)."""

    text: str
    logprob: float


class Generator:
    """Actor that holds one engine and loads policy versions into it in place."""

    def __init__(self, setup: Setup):
        from rayrec.models import opens

        opens.install()
        self.storage = setup.storage
        setup = dataclasses.replace(setup, base=str(self.storage.fetch(setup.base)))
        self.seed, self.template = setup.config.data.seed, setup.template
        from rayrec.chat import ChatEngine

        engines = {"vllm": VllmEngine, "torch": TorchEngine, "chat": ChatEngine}
        self.engine = engines[setup.engine](setup)
        self.beams = BeamEngine(setup)
        self.versions: dict[int, str] = {}

    def ready(self) -> dict:
        """Facts about the engine, once it is up."""
        import ray

        nodes = [ray.util.get_node_ip_address()]
        return {"pid": os.getpid(), "engine": type(self.engine).__name__, "nodes": nodes}

    def answer(self, part: Part) -> tuple[list[list[Answer]], dict]:
        """Answers to the prompts of a part, best first (scored ones as given), and facts for the trace."""
        import torch

        from rayrec.models import opens

        begun = time.time()
        engine = self.beams if part.mode in ("beams", "d3", "score") else self.engine
        if self.versions.get(id(engine)) != part.version:
            engine.load(part.version, str(self.storage.fetch(part.folder)))
            self.versions[id(engine)] = part.version
        seed = seed_of(self.seed, part.phase, part.number)
        torch.manual_seed(seed)  # vLLM on a CPU takes no seed of a request
        prompts = [list(ids) for ids in part.prompts]
        if part.mode == "score":
            answers = self.beams.score(prompts, [[list(ids) for ids in one] for one in part.choices])
        elif part.guide is not None:
            guide = dataclasses.replace(part.guide, folder=str(self.storage.fetch(part.guide.folder)))
            answers = self.beams.guided(prompts, part.n, guide)
        else:
            answers = engine.answer(prompts, part.mode, part.n, seed)
        made = [[Answer(self.template.text(ids), logprob) for ids, logprob in one] for one in answers]
        facts = {"start": begun, "end": time.time(), "generator_pid": os.getpid(), "weight_opens": opens.opens()}
        return made, {**facts, "tokens": sum(len(ids) for one in answers for ids, _ in one)}

    def sleep(self) -> None:
        """Give the card's memory to training (``--placement shared``)."""
        self.engine.sleep()

    def wake(self) -> None:
        """Take the memory back."""
        self.engine.wake()


@dataclass(order=True)
class _Job:
    """One request: parts that are made when an actor is free for them, so that they never lie here all at once."""

    place: tuple[int, int]
    """Where it stands in the queue."""
    future: Future = field(compare=False)
    count: int = field(compare=False)
    part_of: Callable[[int], Part] = field(compare=False)
    take: Callable[[int, list[list[Answer]]], None] = field(compare=False)
    on_part: Callable[[int], None] = field(compare=False)
    given: int = field(default=0, compare=False)
    again: list[int] = field(default_factory=list, compare=False)
    """Parts whose actor died."""
    done: int = field(default=0, compare=False)

    @property
    def waits(self) -> bool:
        """Whether a part has no actor."""
        return bool(self.again) or self.given < self.count

    def next(self) -> int:
        """The number of a part that has no actor."""
        if self.again:
            return self.again.pop()
        self.given += 1
        return self.given - 1


def is_death(error: BaseException) -> bool:
    """Whether an error says that a generator, and perhaps its node, is gone, and not that a part cannot be answered."""
    from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

    told = error.cause if isinstance(error, RayTaskError) else error
    # On a GPU vLLM's engine is a process of its own, which its actor outlives.
    engine = any(kind.__name__ == "EngineDeadError" for kind in type(told).__mro__)
    return engine or isinstance(told, RayActorError | GetTimeoutError | ObjectLostError)


class GeneratorPool:
    """The driver's handle on the actors: parts wait in one queue, each actor is fed by a thread of its own."""

    def __init__(self, setup: Setup, trace: Any, reserved: Reserved):
        import ray

        self.config, self.trace, self._ray, self._gpu = setup.config, trace, ray, setup.gpu
        self._reserved = reserved
        self._setup = ray.put(setup)
        self._queue: list[_Job] = []
        self._order, self._ready, self._closed = itertools.count(), threading.Condition(), False
        self._jobs: list[_Job] = []
        self.error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._feed, args=(i,), name=f"generator-{i}", daemon=True)
            for i in range(setup.config.placement.generators)
        ]
        for thread in self._threads:
            thread.start()

    def _actor(self, index: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        first, *more = generator_bundles(self.config, self._gpu)
        own = {name: amount for name, amount in first.items() if name not in ("CPU", "GPU")}
        options: dict[str, Any] = {"num_cpus": first["CPU"], "num_gpus": first.get("GPU", 0), "resources": own}
        if more:  # vLLM places a worker in every bundle itself
            options = {"num_cpus": 0, "num_gpus": 0}
        room = PlacementGroupSchedulingStrategy(
            self._reserved.generators[index], placement_group_capture_child_tasks=bool(more)
        )
        return self._ray.remote(Generator).options(scheduling_strategy=room, **options).remote(self._setup)

    def submit(
        self,
        count: int,
        part_of: Callable[[int], Part],
        take: Callable[[int, list[list[Answer]]], None],
        urgent: bool = False,
        on_part: Callable[[int], None] = lambda done: None,
    ) -> Future:
        """Queue the ``count`` parts of one phase; the future is done when all are. Urgent ones go first.

        ``part_of(i)`` is asked for a part when an actor is free, and ``take(i, answers)`` gets its answers, in no order
        and in the actors' threads; ``on_part`` hears how many are done.
        """
        job = _Job((0 if urgent else 1, next(self._order)), Future(), count, part_of, take, on_part)
        with self._ready:
            if self.error is not None:
                job.future.set_exception(self.error)
            elif not count:
                job.future.set_result(None)
            else:
                self._jobs = [other for other in self._jobs if not other.future.done()] + [job]
                heapq.heappush(self._queue, job)
                self._ready.notify_all()
        return job.future

    def _feed(self, index: int) -> None:
        """Feed one actor: take a part, wait for its answers, replace the actor if it dies."""
        actor, deaths, allowed = None, 0, self.config.placement.max_deaths
        while not self._closed:
            job, i, part = None, 0, None
            try:
                if actor is None:
                    actor = self._actor(index)
                    self._start(actor, index)
                with self._ready:
                    while not self._queue and not self._closed:
                        self._ready.wait(1.0)
                    if self._closed:
                        break
                    job = self._queue[0]
                    i = job.next()
                    if not job.waits:
                        heapq.heappop(self._queue)
                part = job.part_of(i)
                self._answer(actor, index, part, job, i)
            except BaseException as error:  # what is no death is told to whoever waits for the part
                if not is_death(error):
                    cause = getattr(error, "cause", None)
                    return self._fail(cause if isinstance(cause, ConnectionError) else error)
                deaths, actor = deaths + 1, self._bury(actor)
                silent = isinstance(error, self._ray.exceptions.GetTimeoutError)
                what = f"gave no answer for {self._patience(part):.0f} s" if silent else "died"
                where = f"in {part.phase} part {part.number}" if part else "at its start"
                what = f"generator {index} {what} {where} ({deaths} of {allowed} allowed)"
                if deaths > allowed:
                    return self._fail(Stopped(f"{what}: {error}"))
                print(f"{what}: it is replaced", flush=True)
                if job is not None:
                    self._put_back(job, i)
        self._bury(actor)

    def _put_back(self, job: _Job, i: int) -> None:
        """Queue a part again whose actor died."""
        with self._ready:
            if self.error is not None:
                return
            if not job.waits:
                heapq.heappush(self._queue, job)
            job.again.append(i)
            self._ready.notify_all()

    def _patience(self, part: Part | None) -> float:
        """Seconds that an answer may take; before a start, a node may have to come first."""
        placement = self.config.placement
        return placement.wait_seconds + (0 if part else placement.wait_for_resources)

    def _start(self, actor: Any, index: int) -> None:
        begun = time.time()
        facts = self._ray.get(actor.ready.remote(), timeout=self._patience(None))
        self.trace.add("engine", "start", "generators", f"generator {index}", begun, time.time(), **facts)

    def _answer(self, actor: Any, index: int, part: Part, job: _Job, i: int) -> None:
        answers, facts = self._ray.get(actor.answer.remote(part), timeout=self._patience(part))
        begun, end = facts.pop("start"), facts.pop("end")
        self.trace.add(part.phase, "part", "generators", f"generator {index}", begun, end, part=part.number, **facts)
        job.take(i, answers)
        with self._ready:
            job.done += 1
            done = job.done
        job.on_part(done)
        with self._ready:
            if done == job.count and not job.future.done():
                job.future.set_result(None)

    def _bury(self, actor: Any) -> None:
        if actor is not None:
            with contextlib.suppress(Exception):  # Ray may be gone already, and the actor with it
                self._ray.kill(actor)

    def _fail(self, error: BaseException) -> None:
        """Tell everybody who waits, now or later: one actor that cannot be had is not made up for by the others."""
        with self._ready:
            self.error = error
            self._queue.clear()
            for job in self._jobs:
                if not job.future.done():
                    job.future.set_exception(error)
            self._jobs = []

    def close(self, orderly: bool) -> None:
        """End all actors, and wait for that if ``orderly``; parts that wait are dropped."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        self._fail(Stopped("stopped"))
        for thread in self._threads if orderly else ():
            thread.join(timeout=5)
