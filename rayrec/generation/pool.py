"""The pool of engine actors: alive for the whole run, they answer prompts part by part.

A part is a fixed number of prompts, answered whole by one actor in one call. Before each part the actor loads the
policy version that the part names, empties the prefix cache and seeds the generator from (seed, phase, part), so that a
part made again, by whichever actor and after whatever traffic, is the same part bit for bit (on CPUs of one type).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from rayrec.cluster import connect
from rayrec.cluster.reserve import Reserved, generator_bundles
from rayrec.errors import Stopped
from rayrec.generation.constrained import BeamEngine
from rayrec.generation.engine import BY_WEIGHTS, Guide, Mode, Setup
from rayrec.generation.torch import TorchEngine
from rayrec.generation.vllm import VllmEngine
from rayrec.seeds import seed_of

_log = logging.getLogger(__name__)


#: Seconds between two looks at actors that may be silent.
_LOOK = 1.0
#: Seconds of silence after which a generator is first told of.
_WORD = 60.0
#: Seconds in which an answer that is there must be here.
_FETCH = 30.0
#: Seconds between two looks for a new phase, or for answers to be taken, while some actors are free.
_GLANCE = 0.05
#: Answers of a phase that may lie here before its next parts wait until some are taken.
_UNTAKEN = 64


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
        self.storage = setup.storage
        setup = dataclasses.replace(setup, base=str(self.storage.download(setup.base)))
        self.seed, self.template = setup.config.data.seed, setup.template
        from rayrec.generation.chat import ChatEngine

        engines = {"vllm": VllmEngine, "torch": TorchEngine, "chat": ChatEngine}
        self.engine = engines[setup.engine](setup)
        self.beams = BeamEngine(setup)
        self.versions: dict[int, str] = {}
        self.sleeps = False

    def ready(self) -> dict:
        """Facts about the engine, once it is up."""
        import ray

        nodes = [ray.util.get_node_ip_address()]
        return {"pid": os.getpid(), "engine": type(self.engine).__name__, "nodes": nodes}

    def answer(self, part: Part) -> tuple[list[list[Answer]], dict]:
        """Answers to the prompts of a part, best first (scored ones as given), and facts for the trace."""
        begun = time.time()
        if self.sleeps:
            self.engine.wake()
            self.sleeps = False
        engine = self.beams if part.mode in BY_WEIGHTS else self.engine
        if self.versions.get(id(engine)) != part.version:
            engine.load(part.version, str(self.storage.download(part.folder)))
            self.versions[id(engine)] = part.version
        seed = seed_of(self.seed, part.phase, part.number)
        prompts = [list(ids) for ids in part.prompts]
        if part.mode == "score":
            answers = self.beams.score(prompts, [[list(ids) for ids in one] for one in part.choices])
        elif part.guide is not None:
            guide = dataclasses.replace(part.guide, folder=str(self.storage.download(part.guide.folder)))
            answers = self.beams.guided(prompts, part.n, guide)
        else:
            answers = engine.answer(prompts, part.mode, part.n, seed)
        made = [[Answer(self.template.text(ids), logprob) for ids, logprob in one] for one in answers]
        facts = {"start": begun, "end": time.time(), "generator_pid": os.getpid()}
        return made, {**facts, "tokens": sum(len(ids) for one in answers for ids, _ in one)}

    def sleep(self) -> None:
        """Give the card's memory to training until the next part (``--placement shared``)."""
        self.engine.sleep()
        self.sleeps = True


@dataclass(order=True)
class _Job:
    """One request: parts that are made when an actor is free for them, so that they never lie here all at once."""

    place: tuple[int, int]
    """Where it stands in the queue."""
    count: int = field(compare=False)
    part_of: Callable[[int], Part] = field(compare=False)
    answered: SimpleQueue[tuple[int, Any] | BaseException] = field(compare=False, default_factory=SimpleQueue)
    """Parts with their answers, or why there are no more, for whoever asked."""
    given: int = field(default=0, compare=False)
    again: list[int] = field(default_factory=list, compare=False)
    """Parts whose actor died."""
    deaths: Counter[int] = field(default_factory=Counter, compare=False)
    """How many died of a part."""

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


@dataclass(eq=False)
class _Seat:
    """The place of one generator: its actor of the moment, and what that is asked for."""

    index: int
    actor: Any = None
    deaths: int = 0
    """Actors in turn that answered nothing."""
    job: _Job | None = None
    """None while the actor starts or is free."""
    number: int = 0
    part: Part | None = None
    since: float = 0.0
    """When it was last asked for something, of ``time.monotonic``."""
    word: float = 0.0
    """Seconds of silence after which that is told."""

    @property
    def where(self) -> str:
        """What the actor is at."""
        return f"in {self.part.phase} part {self.part.number}" if self.part else "at its start"


def is_death(error: BaseException) -> bool:
    """Whether an error says that a generator, and perhaps its node, is gone, and not that a part cannot be answered."""
    from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

    told = error.cause if isinstance(error, RayTaskError) else error
    # On a GPU vLLM's engine is a process of its own, which its actor outlives.
    engine = any(kind.__name__ == "EngineDeadError" for kind in type(told).__mro__)
    return engine or isinstance(told, (*connect.deaths(), GetTimeoutError, ObjectLostError))


class GeneratorPool:
    """The driver's handle on the actors: one thread feeds all of them from one queue of parts.

    That thread alone knows who is asked for what. It hears of phases by one queue, and tells whoever waits for a phase
    by the phase's own.
    """

    def __init__(self, setup: Setup, trace: Any, reserved: Reserved):
        import ray

        self.config, self.trace, self._ray, self._gpu = setup.config, trace, ray, setup.gpu
        self._reserved = reserved
        self._setup = ray.put(setup)
        self._seats = [_Seat(index) for index in range(setup.config.placement.generators)]
        self._free: deque[_Seat] = deque()
        self._queue: list[_Job] = []
        self._order, self._takes_turns = itertools.count(), setup.config.placement.placement == "shared"
        self._asked: dict[Any, _Seat] = {}
        self._wakes = False
        self._news: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock, self._jobs, self._closed = threading.Lock(), list[_Job](), False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="generators", daemon=True)
        self._thread.start()

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

    def ask(
        self, count: int, part_of: Callable[[int], Part], urgent: bool = False
    ) -> Iterator[tuple[int, list[list[Answer]]]]:
        """Yield the number and the answers of each of the ``count`` parts of one phase, in the order of their coming.

        Whoever takes them slowly holds up the parts that are left: answers do not pile up.
        ``part_of(i)`` is asked for a part when an actor is free, in the pool's thread. Urgent phases go first.

        Raises:
            Stopped: a generator died more often than allowed, or the pool was closed.
            ray.exceptions.RayTaskError: what a part ended with, for every phase that waits.
        """
        job = _Job((0 if urgent else 1, next(self._order)), count, part_of)
        with self._lock:
            if self.error is not None:
                raise self.error
            self._jobs.append(job)
        self._news.put(job)
        try:
            for _ in range(count):
                told = job.answered.get()
                if isinstance(told, BaseException):
                    raise told
                yield told
        finally:
            with self._lock:
                self._jobs = [other for other in self._jobs if other is not job]

    def _run(self) -> None:
        """Start the actors, and feed whoever is free, until the pool is closed."""
        try:
            for seat in self._seats:
                self._open(seat)
            looked = time.monotonic()
            while not self._closed:
                self._hear_askers()
                for seat, answer in self._answers():
                    self._hear(seat, answer)
                self._rest()
                if time.monotonic() - looked > _LOOK:
                    self._look()
                    looked = time.monotonic()
        except BaseException as error:  # what is no death is told to whoever waits for a part
            cause = getattr(error, "cause", None)  # of the storage's troubles the user hears as of the driver's own
            self._fail(cause if isinstance(cause, OSError | Stopped) else error)
        for seat in self._seats:
            self._bury(seat.actor)

    def _hear_askers(self) -> None:
        """Queue new phases; wait for one if no actor has anything to do."""
        with contextlib.suppress(queue.Empty):
            job = self._news.get(block=not self._asked, timeout=_GLANCE if self._queue else _LOOK)
            if job is not None:
                self._line_up(job)
        self._feed()

    def _answers(self) -> list[tuple[_Seat, Any]]:
        """The actors that have answered, waited for if there is none yet."""
        open_ = list(self._asked)
        ready, _ = self._ray.wait(open_, num_returns=len(open_), timeout=0) if open_ else ([], [])
        if open_ and not ready:
            ready, _ = self._ray.wait(open_, timeout=_GLANCE if self._free else _LOOK)
        return [(self._asked.pop(answer), answer) for answer in ready]

    def _rest(self) -> None:
        """Where training and generation take turns on a card, leave it once nothing is asked for."""
        if self._wakes and self._takes_turns and not self._asked and not self._queue:
            self._wakes = False
            for seat in self._seats:
                seat.actor.sleep.remote()

    def _line_up(self, job: _Job) -> None:
        if job.waits and job not in self._queue:
            self._queue.append(job)

    def _open(self, seat: _Seat) -> None:
        """Start the actor of a seat."""
        seat.actor = self._actor(seat.index)
        self._expect(seat, seat.actor.ready.remote())

    def _feed(self) -> None:
        """Give the parts that come next to the actors that are free."""
        most = max(_UNTAKEN, len(self._seats))
        while self._free and (open_ := [job for job in self._queue if job.answered.qsize() < most]):
            seat, job = self._free.popleft(), min(open_)
            seat.job, seat.number = job, job.next()
            if not job.waits:
                self._queue.remove(job)
            part = job.part_of(seat.number)
            seat.part = dataclasses.replace(part, prompts=(), choices=(), guide=None)  # Ray holds what is on the way
            self._expect(seat, seat.actor.answer.remote(part))

    def _expect(self, seat: _Seat, answer: Any) -> None:
        self._asked[answer], seat.since, seat.word, self._wakes = seat, time.monotonic(), _WORD, True

    def _hear(self, seat: _Seat, answer: Any) -> None:
        """Take what an actor answers, once it has its next part; replace the actor if it died."""
        try:
            answered = self._ray.get(answer, timeout=_FETCH)
        except BaseException as error:
            if not is_death(error):
                raise
            return self._replace(seat, "died", error)
        seat.deaths = 0 if seat.part else seat.deaths
        job, number, part, since = seat.job, seat.number, seat.part, seat.since
        seat.job = seat.part = None
        self._free.append(seat)
        self._feed()
        who = f"generator {seat.index}"
        if job is None or part is None:
            now = time.time()
            self.trace.add("engine", "start", "generators", who, now - (time.monotonic() - since), now, **answered)
            return
        answers, facts = answered
        begun, end = facts.pop("start"), facts.pop("end")
        self.trace.add(part.phase, "part", "generators", who, begun, end, part=part.number, **facts)
        job.answered.put((number, answers))

    def _look(self) -> None:
        """Tell of the actors that are silent, and give them up after too long; at first a node may have to come."""
        placement = self.config.placement
        for answer, seat in list(self._asked.items()):
            patience = placement.wait_seconds + (0 if seat.part else placement.wait_for_resources)
            silent = time.monotonic() - seat.since
            if silent > patience and not self._ray.wait([answer], timeout=0)[0]:  # this process may have stood still
                del self._asked[answer]
                self._replace(seat, f"gave no answer for {patience:.0f} s", "")
            elif silent > seat.word:
                _log.info("generator %d has been %s for %.0f s", seat.index, seat.where, silent)
                seat.word *= 2

    def _replace(self, seat: _Seat, what: str, error: object) -> None:
        """Put a new actor on a seat, and its part back into the queue.

        Raises:
            Stopped: too many died of this part, or in turn on this seat without an answer.
        """
        self._bury(seat.actor)
        if self._gpu and self.config.placement.tensor_parallel > 1:
            self._reserved.renew(seat.index)
        seat.deaths += 1
        deaths, allowed = seat.deaths, self.config.placement.max_deaths
        if seat.job is not None:
            seat.job.deaths[seat.number] += 1
            deaths = max(deaths, seat.job.deaths[seat.number])
        what = f"generator {seat.index} {what} {seat.where} ({deaths} of {allowed} allowed)"
        if deaths > allowed:
            raise Stopped(f"{what}: {error}" if error else what)
        _log.info("%s: it is replaced", what)
        if seat.job is not None:
            seat.job.again.append(seat.number)
            self._line_up(seat.job)
        seat.job = seat.part = None
        self._open(seat)

    def _bury(self, actor: Any) -> None:
        if actor is not None:
            with contextlib.suppress(Exception):  # Ray may be gone already, and the actor with it
                self._ray.kill(actor)

    def _fail(self, error: BaseException) -> None:
        """Tell everybody who waits, now or later: one actor that cannot be had is not made up for by the others."""
        with self._lock:
            self.error = self.error or error
            for job in self._jobs:
                job.answered.put(error)
            self._jobs = []

    def close(self, orderly: bool) -> None:
        """End all actors, and wait for that if ``orderly``; parts that wait are dropped."""
        self._closed = True
        self._fail(Stopped("stopped"))
        self._news.put(None)
        if orderly:
            self._thread.join(timeout=5)
