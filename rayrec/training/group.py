"""The group of training workers: one Ray Train run for the whole job, whose workers pull phases from a board actor.

A phase starts from the weights of a finished folder, reads its rows with Ray Data, trains with a fresh DeepSpeed engine
and leaves a policy folder. Ray Train replaces a worker that dies; the new group asks the board where to go on and does
the phase again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

from rayrec.cluster import connect
from rayrec.cluster.reserve import Reserved, room_for_trainers, trainer_bundles, trainers_shortage
from rayrec.config import Config
from rayrec.errors import Stopped
from rayrec.objectives import Objective
from rayrec.prompts import Template
from rayrec.runs.run import Run
from rayrec.training.batches import write_tokens
from rayrec.training.board import Board, Phase

_log = logging.getLogger(__name__)


#: Seconds of silence after which that is first told.
_WORD = 60.0


class TrainGroup:
    """The driver's handle on the worker group; :meth:`run` does one phase and returns its metrics."""

    def __init__(
        self,
        config: Config,
        base: str,
        template: Template,
        work: Run,
        gpu: bool,
        reserved: Reserved,
        objective: Objective | None = None,
    ):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.config, self.work, self.gpu, self.reserved = config, work, gpu, reserved
        # Zero CPUs: the board only waits. It lives on the driver's node, so no other node's loss ends it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Every worker waits here in a call of its own, and that of one that died ends when another has its rank.
        calls = 2 * config.worker_counts[-1] + 64
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": calls, "scheduling_strategy": here}
        self.board: Any = ray.remote(Board).options(**options).remote()
        self.setup = {"board": self.board, "config": config, "base": base, "gpu": gpu, "storage": work.storage}
        # The objective itself and not its name: a class of the user's script is known only to the driver.
        self.setup |= {"template": template, "objective": objective}
        self.closed = False
        self.counts = config.worker_counts
        self.deaths = 0
        """How often Ray Train's run ended since a phase was finished."""
        self.size = 0
        """Workers of the group that is there or comes up; 0 while that is not settled."""
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="ray-train", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        """:meth:`_fit`; whoever waits for a result hears of its error."""
        try:
            self._fit()
        except BaseException as error:
            self.error = error

    def _fit(self) -> None:
        """Ray Train's runs: one, and another where its controller dies with its workers, where they do not come up, or
        where their number changes.

        An elastic group ends with the first worker that dies, and comes up again in the size that there is room for.
        """
        from ray.train import TrainingFailedError

        found = 0
        self.reserved.free_trainers()
        while not self.closed:
            try:
                self.size = 0
                if found:
                    self._ask(self.board.open.remote(), "training workers")
                self.size = found = self._settle()  # after the board is open: who dismisses now means the new group
                self._trainer(found).fit()
            except (*connect.deaths(), TrainingFailedError) as error:
                if self.closed:
                    return
                self.reserved.free_orphans()
                if _lacked_room(error):  # run() waits for it, and tells how long
                    continue
                self.deaths += 1
                who = "a training worker" if isinstance(error, TrainingFailedError) else "Ray Train's controller"
                if self._counted(f"{who} of {found}", self.deaths, last_words(error)):
                    return

    def _counted(self, who: str, deaths: int, words: str) -> bool:
        """Tell of a death; whether it was one too many, which the lane hears that waits for a result."""
        allowed = self.config.placement.max_deaths
        if deaths > allowed:
            self.error = Stopped(f"{who} died ({deaths} of {allowed} allowed). {words}")
        else:
            _log.info("%s died (%d of %d allowed): it is replaced", who, deaths, allowed)
        return deaths > allowed

    @property
    def elastic(self) -> bool:
        """Whether the group may change its size."""
        return len(self.counts) > 1

    def _settle(self) -> int:
        """The size of the next group.

        Raises:
            Stopped: there is room for less than --train-workers.
        """
        if not self.elastic:
            return self.counts[0]
        patience = self.config.placement.wait_for_resources
        if found := room_for_trainers(self.config, self.gpu, self.counts, held=0, settle=5.0, wait=patience):
            _log.info("training workers: %d of %s", found, self.counts)
            return found
        raise Stopped(
            f"there is no longer room: {trainers_shortage(self.config, self.gpu, self.counts[0])}\n"
            "Lower --train-workers, add nodes, or wait for them with --wait-for-resources SECONDS."
        )

    def _grow(self) -> None:
        """Before a phase: let a larger group take the place of one that lost workers, where there is room again."""
        bigger = [n - self.size for n in self.counts if n > self.size > 0]
        if bigger and room_for_trainers(self.config, self.gpu, bigger, held=self.size, settle=1.0, wait=0.0):
            self.size = 0
            self._ask(self.board.dismiss.remote(), "training workers")

    def _patience(self, there: bool) -> float:
        """Seconds of silence after which a group is given up; before it is there, nodes may have to come."""
        placement = self.config.placement
        return placement.wait_seconds + (0 if there else placement.wait_for_resources)

    def _ask(self, answer: Any, what: str) -> Any:
        """The board's answer.

        Raises:
            Stopped: it died, or gave none for ``wait_seconds``.
        """
        import ray
        from ray.exceptions import GetTimeoutError

        patience = self.config.placement.wait_seconds
        try:
            return ray.get(answer, timeout=patience)
        except (*connect.deaths(), GetTimeoutError) as error:
            silent = isinstance(error, GetTimeoutError)
            how = f"gave no answer for {patience:.0f} s" if silent else f"died: {error}"
            raise Stopped(f"{what}: the board, which hands phases to the workers, {how}") from error

    def _trainer(self, size: int) -> Any:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from rayrec.training.worker import work

        bundle, *_ = trainer_bundles(self.config, self.gpu)
        return TorchTrainer(
            work,
            train_loop_config=self.setup,
            scaling_config=ScalingConfig(num_workers=size, use_gpu=self.gpu, resources_per_worker=bundle),
            torch_config=TorchConfig(backend=backends(self.gpu)),
            run_config=RunConfig(
                name="train",
                **self.work.storage.for_ray_train(self.work.root),
                failure_config=failures(self.elastic),
                callbacks=[telling(self.board)],
            ),
        )

    def run(self, phase: Phase, progress: Any) -> dict:
        """Do one phase; ``progress(step=…, …)`` hears the heartbeats. Returns the phase's metrics.

        Raises:
            FloatingPointError: a loss or gradient was not finite; the message names the examples.
            Stopped: the storage failed a worker, the worker group died more often than allowed, or it or the board was
                silent for ``wait_seconds``.
        """
        if self.elastic:
            self._grow()
        if phase.rows:  # sequential recommenders have none
            write_tokens(phase, self.setup["template"], self.work.storage, self.config.placement.wait_seconds)
        number = self._ask(self.board.post.remote(phase), phase.name)
        begun, told, heard, word = time.time(), 0, 0.0, _WORD
        while True:
            result, beat, there, deaths, words = self._ask(self.board.poll.remote(number, 0.5), phase.name)
            if result is not None:
                self.deaths = 0
                break
            if deaths > told and not self.elastic:
                self._counted(f"{phase.name}: a training worker of {self.size}", deaths, words)
            told = deaths
            if self.closed:
                raise Stopped(f"{phase.name}: stopped")
            if self.error is not None:
                raise Stopped(f"{phase.name}: the training workers are gone: {self.error}") from self.error
            if beat["time"] != heard:
                heard, word = beat["time"], _WORD
                if beat.get("phase") == phase.name:
                    progress(**{k: v for k, v in beat.items() if k not in ("phase", "time")})
            silent = time.time() - max(begun, beat["time"])
            if silent > word:
                _log.info("%s: no word from the training workers for %.0f s", phase.name, silent)
                word *= 2
            if silent > self._patience(there and self.size > 0):
                room = "" if there else ". " + trainers_shortage(self.config, self.gpu, self.size or self.counts[0])
                raise Stopped(
                    f"{phase.name}: no word from the training workers for {silent:.0f} s (last: {beat}){room}"
                )
        if "stopped" in result:
            raise Stopped(f"{phase.name}: {result['stopped']}")
        if "error" in result:
            raise FloatingPointError(result["error"])
        return result

    def close(self, orderly: bool) -> None:
        """Let the workers leave, and wait a moment for Ray Train to end; or only stop waiting for a phase."""
        import ray

        self.closed = True
        if orderly:
            ray.wait([self.board.close.remote()], timeout=20)  # the run is done, whether or not it answers
            self._thread.join(timeout=20)


def backends(gpu: bool) -> str:
    """What a group's workers talk by: NCCL has no sums of what lies on CPUs, and those of the losses do."""
    return "cpu:gloo,cuda:nccl" if gpu else "gloo"


def failures(elastic: bool) -> Any:
    """A group of fixed size is made anew by Ray Train, as often as :meth:`TrainGroup.run` allows.

    One that does not come up ends Ray Train's run, which would try again without a word and without an end.
    """
    from ray.train import FailureConfig

    again = 0 if elastic else -1
    return FailureConfig(max_failures=again, max_preemption_failures=again, controller_failure_limit=0)


def _lacked_room(error: BaseException) -> bool:
    """Whether a group did not come up for want of a node, which may come yet."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def last_words(error: BaseException) -> str:
    """Why training workers died, in at most three lines of theirs, and where they said more."""
    return words_of([*getattr(error, "worker_failures", {}).values()] or [error])


def words_of(failures: Iterable[BaseException]) -> str:
    """The same, from what each of them ended with."""
    said = dict.fromkeys(f"{type(one).__name__}: {(str(one).strip().splitlines() or [''])[-1]}" for one in failures)
    return f"{'; '.join([*said][:3])}\nThe workers' own logs lie on their nodes, in {connect.logs()}."


def telling(board: Any) -> Any:
    """Ray Train's word to the board that a worker died."""
    from ray.train import UserCallback

    class Telling(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            board.lose.remote(words_of(worker_exceptions.values()))

    return Telling()
