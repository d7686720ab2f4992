"""The pool of generator actors: alive for the whole run, they answer prompts part by part.

A part is a fixed number of prompts, answered whole by one actor in one call from the policy version and the seed that
it names. A part made again, by whichever actor and after whatever traffic, is the same bit for bit (on CPUs of one
type). An engine that batches by itself has several parts at once (``Engine.in_flight``), so it does not run dry between
two of them, nor wait for the longest answer of each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rayrec import signals
from rayrec.cluster import connect
from rayrec.cluster.memory import KernelKills, gigabytes, out_of_memory
from rayrec.cluster.reserve import Reserved, generator_bundles
from rayrec.cluster.watchdog import WARN_AFTER, Watchdog
from rayrec.errors import Stopped
from rayrec.generation.actor import Generator
from rayrec.generation.engine import Answer, EngineDied, Part, Setup
from rayrec.generation.slots import Free, Job, Slot, Task

if TYPE_CHECKING:
    from rayrec.runs.trace import Trace

_log = logging.getLogger(__name__)

#: What lowers the memory of a generator.
LESS_MEMORY = (
    "Lower --beam-width, --part or --max-length under another --name, or --generators or --train-workers, or take "
    "--dtype bfloat16."
)
#: Seconds between two looks for silent actors; for new phases, while some actors are free.
_CHECK, _POLL = 1.0, 0.05
#: Seconds more that an engine on a GPU may take to come up.
_START = 1800.0
#: Seconds in which the bytes of an answer must arrive once it is ready.
_FETCH = 30.0
#: Least number of answers of a phase that may wait here; until some are taken, no more of its parts start.
_UNTAKEN = 64


def is_death(error: BaseException) -> bool:
    """Whether an error means that a generator, and perhaps its node, is gone, and not that a part has no answer."""
    from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, (EngineDied, GetTimeoutError, ObjectLostError, *connect.deaths()))


class GeneratorPool:
    """The driver's handle on the actors: one thread feeds all of them, urgent phases first.

    Ray's own restarts of actors and tasks are not used: they do not count how many actors died of one part, and do not
    notice an actor that hangs. ``warn_after``: seconds of an actor's silence until the first warning.
    """

    def __init__(self, setup: Setup, trace: Trace, reserved: Reserved, warn_after: float = WARN_AFTER):
        import ray

        self.config, self.trace, self._ray, self._gpu = setup.config, trace, ray, setup.gpu
        self._reserved, self._setup = reserved, ray.put(setup)
        count, patience = self.config.placement.generators, self.config.placement.wait_seconds
        self._slots = [Slot(i, Watchdog("", patience, warn_after)) for i in range(count)]
        self._in_flight = setup.engine.in_flight(setup.gpu)
        self._free = Free(self._in_flight)
        self._pending: dict[Any, tuple[Slot, Task | None]] = {}
        """The task that the pool waits for: an actor's start, or its answer."""
        self._awake, self._closed, self._new_job = False, False, threading.Event()
        self._resting = threading.Event()
        self._kills = KernelKills()
        self._lock, self._jobs = threading.Lock(), list[Job]()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="generators", daemon=True)
        self._thread.start()

    def ask(
        self, count: int, part_of: Callable[[int], Part], urgent: bool = False
    ) -> Iterator[tuple[int, list[list[Answer]]]]:
        """Yield number and answers of each of the ``count`` parts of one phase, in the order in which they finish.

        A slow consumer delays the parts that are left: answers do not pile up. ``part_of(i)`` is called when an actor
        is free for the part, in the pool's thread. Urgent phases go first.

        Raises:
            Stopped: a generator died more often than allowed, or the pool was closed.
            ValueError: an engine refuses its inputs, or there is no memory for it.
            ray.exceptions.RayTaskError: a part failed; every phase that waits gets the error.
        """
        job = Job(urgent, part_of, deque(range(count)))
        with self._lock:
            if self.error is not None:
                raise self.error
            self._jobs.append(job)
        self._new_job.set()
        try:
            for _ in range(count):
                answer = job.answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            with self._lock:
                self._jobs = [other for other in self._jobs if other is not job]

    def rest(self) -> None:
        """Wait until all engines are up and have left the GPUs (``--placement shared``): training then has them.

        Raises:
            BaseException: what the pool failed of.
        """
        while not self._resting.wait(0.1):
            signals.check()
            with self._lock:
                if self.error is not None:
                    raise self.error

    def close(self, orderly: bool) -> None:
        """End all actors, and wait for that if ``orderly``; parts that wait are dropped."""
        self._closed = True
        self._fail(Stopped("stopped"))
        self._new_job.set()
        if orderly:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        """Start the actors, and feed those that are free until the pool is closed."""
        try:
            for slot in self._slots:
                self._start(slot)
            checked = time.monotonic()
            while not self._closed:
                self._feed()
                for answer in self._ready():
                    self._on_answer(answer)
                self._sleep_if_idle()
                if time.monotonic() - checked > _CHECK:
                    self._check_silent()
                    checked = time.monotonic()
        except BaseException as error:
            cause = getattr(error, "cause", None)  # the user reads of it as if the driver had met it
            self._fail(cause if isinstance(cause, OSError | Stopped | ValueError) else error)
        for slot in self._slots:
            self._kill(slot.actor)

    def _fail(self, error: BaseException) -> None:
        """Raise an error wherever answers are waited for, now or later."""
        with self._lock:
            self.error = self.error or error
            for job in self._jobs:
                job.answers.put(error)
            self._jobs = []

    def _start(self, slot: Slot) -> None:
        slot.actor, slot.up, slot.tasks = self._actor(slot.index), False, []
        self._free.settle(slot)
        # The actor may wait for a node that has yet to join; on a GPU it fetches a model and captures graphs of it.
        extra = self.config.placement.wait_for_resources + (_START if self._gpu else 0.0)
        self._expect(slot, None, slot.actor.ready.remote(), extra)

    def _actor(self, index: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        first, *more = generator_bundles(self.config, self._gpu)
        own = {name: amount for name, amount in first.items() if name not in ("CPU", "GPU")}
        options: dict[str, Any] = {"num_cpus": first["CPU"], "num_gpus": first.get("GPU", 0), "resources": own}
        if more:  # the engine places a worker in every bundle itself
            options = {"num_cpus": 0, "num_gpus": 0}
        if self._in_flight > 1:
            options["max_concurrency"] = self._in_flight
        bundles = PlacementGroupSchedulingStrategy(
            self._reserved.generators[index], placement_group_capture_child_tasks=bool(more)
        )
        return self._ray.remote(Generator).options(scheduling_strategy=bundles, **options).remote(self._setup)

    def _expect(self, slot: Slot, task: Task | None, answer: Any, extra_patience: float = 0.0) -> None:
        self._pending[answer], self._awake = (slot, task), True
        self._resting.clear()
        if len(slot.tasks) < 2:  # else it has been silent since its last answer
            slot.watchdog.beat()
        self._watch(slot, extra_patience)

    def _watch(self, slot: Slot, extra_patience: float = 0.0) -> None:
        slot.watchdog.who = f"{slot.name} has been {slot.place}"
        slot.watchdog.patience = self.config.placement.wait_seconds + extra_patience

    def _feed(self) -> None:
        """Give the next parts to free actors."""
        limit = max(_UNTAKEN, len(self._slots) * self._in_flight)
        while slot := self._free.first():
            open_ = (job for job in self._jobs if job.todo and job.answers.qsize() < limit)
            job = min(open_, key=lambda one: not one.urgent, default=None)
            if job is None:
                return
            index = job.todo.popleft()
            part = job.part_of(index)
            task = Task(job, index, dataclasses.replace(part, prompts=[], choices=None, guide=None))
            slot.tasks.append(task)
            self._free.settle(slot)
            self._expect(slot, task, slot.actor.answer.remote(part))

    def _ready(self) -> list[Any]:
        """Answers that are there, or come within a short time; if none is pending, wait for a new job."""
        if not self._pending:
            self._new_job.wait(_POLL if self._jobs else _CHECK)
            self._new_job.clear()
            return []
        pending = list(self._pending)
        ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(pending, timeout=_POLL if self._free else _CHECK)
        return ready

    def _on_answer(self, answer: Any) -> None:
        """Give the actor its next part, then pass the answers on; replace the actor if it died."""
        slot, task = self._pending.pop(answer, (None, None))
        if slot is None:  # of an actor that was replaced for another of these answers
            return
        try:
            found = self._ray.get(answer, timeout=_FETCH)
        except BaseException as error:
            return self._on_error(slot, task, error)
        seconds = slot.watchdog.silent
        if task is None:
            slot.up = True
        else:
            slot.tasks.remove(task)
        self._free.settle(slot)
        slot.watchdog.beat()
        self._watch(slot)
        self._feed()
        if task is None:
            now, slot.held = time.time(), found["memory"]
            self.trace.add("engine", "start", "generators", slot.name, now - seconds, now, **found)
            return
        slot.deaths = slot.starved = 0
        answers, facts = found
        slot.held = facts["memory"]
        begun, end, number = facts.pop("start"), facts.pop("end"), task.part.number
        for one in facts.pop("proofs"):
            self.trace.add("proof", "proof", "generators", slot.name, one.pop("start"), one.pop("end"), **one)
        self.trace.add(task.part.phase, "part", "generators", slot.name, begun, end, part=number, **facts)
        task.job.answers.put((task.index, answers))

    def _on_error(self, slot: Slot, task: Task | None, error: BaseException) -> None:
        """Replace an actor that died.

        Raises:
            ValueError: there is no memory for its part, and was none for the one before it.
            BaseException: ``error``, if it would come again: the actor lives.
        """
        memory, dead = out_of_memory(error), is_death(error)
        if memory := memory or (self._kills.look() if dead else ""):
            held = f", and the generator held {gigabytes(slot.held)} at its last answer" if slot.held else ""
            what = "was killed for memory" if dead else "ran out of memory"
            line = f"{slot.name} {what} {slot.place}: {memory}{held}. {LESS_MEMORY}"
            slot.starved += 1
            if slot.starved > 1 or not dead:
                raise ValueError(line)
            _log.info("%s It is replaced once.", line)
        # The first engine of a slot that does not come up never will; a later one may have met what the first left.
        elif not dead and (task is not None or not slot.deaths):
            raise error
        self._replace(slot, "died", error)

    def _sleep_if_idle(self) -> None:
        """Leave the GPUs to training, where it shares them, once nothing is asked for."""
        idle = not self._pending and not any(job.todo for job in self._jobs)
        if not (idle and self._awake and self.config.placement.placement == "shared"):
            return
        self._awake, asleep = False, [(slot, slot.actor.sleep.remote()) for slot in self._slots]
        for slot, answer in asleep:
            try:
                self._ray.get(answer, timeout=self.config.placement.wait_seconds)
            except BaseException as error:
                self._on_error(slot, None, error)
        if not self._pending:
            self._resting.set()

    def _check_silent(self) -> None:
        """Warn of silent actors, and replace those that were silent for too long."""
        waiting: dict[Slot, list[Any]] = {}
        for answer, (slot, _) in self._pending.items():
            waiting.setdefault(slot, []).append(answer)
        for slot, answers in waiting.items():
            # After a pause of this process itself an answer may be there although patience is over.
            if slot.watchdog.check() and not self._ray.wait(answers, timeout=0)[0]:
                self._replace(slot, f"gave no answer for {slot.watchdog.patience:.0f} s", "")

    def _replace(self, slot: Slot, event: str, error: object) -> None:
        """Start a new actor in a slot, and put its parts back into the queue.

        Raises:
            Stopped: too many actors died of one of these parts, or in a row in this slot without an answer.
        """
        self._kill(slot.actor)
        if self._gpu and self.config.placement.tensor_parallel > 1:
            self._reserved.renew(slot.index)
        self._pending = {answer: one for answer, one in self._pending.items() if one[0] is not slot}
        slot.deaths += 1
        deaths, allowed = slot.deaths, self.config.placement.max_deaths
        for task in slot.tasks:
            task.job.deaths[task.index] += 1
            deaths = max(deaths, task.job.deaths[task.index])
        message = f"{slot.name} {event} {slot.place} ({deaths} of {allowed} allowed)"
        if deaths > allowed:
            raise Stopped(f"{message}: {error}" if error else message)
        _log.info("%s: it is replaced", message)
        for task in reversed(slot.tasks):
            task.job.todo.appendleft(task.index)
        self._start(slot)

    def _kill(self, actor: Any) -> None:
        if actor is not None:
            with contextlib.suppress(Exception):  # Ray may be gone already, and the actor with it
                self._ray.kill(actor)
