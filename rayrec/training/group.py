"""The group of training workers: one Ray Train run for the whole job, whose workers take phases from a board actor.

Ray Train replaces a worker that dies; the new group asks the board for the first unfinished phase and does it again. An
elastic group (``--train-workers 2:8``) ends with the first worker that dies, and starts again in the size that there is
room for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from rayrec.cluster import connect
from rayrec.cluster.devices import choose_interface
from rayrec.cluster.memory import KernelKills, gigabytes, out_of_memory
from rayrec.cluster.reserve import Reserved, room_for_trainers, trainer_bundles, trainers_shortage
from rayrec.cluster.watchdog import Watchdog
from rayrec.config import AnyConfig
from rayrec.errors import Stopped
from rayrec.runs.run import Run
from rayrec.training.board import Board, Status
from rayrec.training.memory import HEAP, SEGMENTS

_log = logging.getLogger(__name__)

#: What lowers the memory of a training worker. These flags decide numbers, so the run gets another name.
LESS_MEMORY = (
    "Lower --pass-memory, --micro-batch, --max-length or --history, add --activation-checkpointing, or take --dtype "
    "bfloat16, under another --name."
)


class Named(Protocol):
    """A phase, as far as the group reads it."""

    @property
    def name(self) -> str: ...


P = TypeVar("P", bound=Named)


class TrainGroup(Generic[P]):
    """The driver's handle on the worker group; :meth:`run` does one phase and returns its metrics.

    Every worker runs ``work(setup)``, which takes phases until the board has none. ``setup`` gets the ``board``, the
    ``storage`` and whether there is a ``gpu``. ``prepare`` is called before a phase is handed out. ``less_memory`` is
    the remedy where a worker has too little.
    """

    def __init__(
        self,
        config: AnyConfig,
        work: Callable[[dict], None],
        setup: dict[str, Any],
        run: Run,
        gpu: bool,
        reserved: Reserved,
        prepare: Callable[[P], None] = lambda phase: None,
        less_memory: str = LESS_MEMORY,
    ):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.config, self._run, self.gpu, self.reserved = config, run, gpu, reserved
        self._work, self._prepare, self._less_memory = work, prepare, less_memory
        # Zero CPUs: the board only waits. It lives on the driver's node, so no other node's loss ends it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Every worker waits there in a call of its own, and the call of a dead one ends when another has its rank.
        calls = 2 * config.worker_counts[-1] + 64
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": calls, "scheduling_strategy": here}
        self.board: Any = ray.remote(Board).options(**options).remote()
        self.setup = {**setup, "board": self.board, "gpu": gpu, "storage": run.storage}
        self.closed = False
        self.counts = config.worker_counts
        self.deaths = 0
        """Ends of Ray Train's run since a phase was finished."""
        self.size = 0
        """Workers of the group that runs or starts; 0 while that is not settled."""
        self.starved, self._kills, self._held = 0, KernelKills(), 0
        """Deaths for want of memory since a phase was finished; what the first worker held at its last heartbeat."""
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._keep_fitting, name="ray-train", daemon=True)
        self._thread.start()

    @property
    def elastic(self) -> bool:
        """Whether the group may change its size."""
        return len(self.counts) > 1

    def run(self, phase: P, progress: Callable[..., None]) -> dict:
        """Do one phase; ``progress(step=…, …)`` gets the heartbeats. Returns the phase's metrics.

        Raises:
            FloatingPointError: a loss or gradient was not finite; the message names the examples.
            ValueError: a worker refuses its inputs, or ran out of memory.
            Stopped: the storage failed a worker, the worker group died more often than allowed, or it or the board was
                silent for ``wait_seconds``.
        """
        if self.elastic:
            self._grow()
        self._prepare(phase)
        number = self._ask(self.board.post.remote(phase), phase.name)
        watchdog = Watchdog(f"{phase.name}: no heartbeat from the training workers", self._patience(up=False))
        known = Status(None, {}, False, 0, "")
        while True:
            status: Status = self._ask(self.board.poll.remote(number, 0.5), phase.name)
            if status.result is not None:
                break
            self._held = status.heartbeat.get("memory", self._held)
            self._check_alive(phase.name, known.deaths, status)
            if status.heartbeat != known.heartbeat:
                watchdog.beat()
                if status.heartbeat.get("phase") == phase.name:
                    progress(**{k: v for k, v in status.heartbeat.items() if k not in ("phase", "time")})
            watchdog.patience = self._patience(status.up and self.size > 0)
            if watchdog.check():
                room = "" if status.up else trainers_shortage(self.config, self.gpu, self.size or self.counts[0])
                raise Stopped(
                    f"{watchdog.who} for {watchdog.silent:.0f} s (last: {status.heartbeat}){room and f'. {room}'}"
                )
            known = status
        self.deaths = self.starved = 0
        self._check(phase.name, status.result)
        return status.result

    def close(self, orderly: bool) -> None:
        """Let the workers end, and wait a moment for Ray Train's end; or only stop waiting for a phase."""
        import ray

        self.closed = True
        if orderly:
            ray.wait([self.board.close.remote()], timeout=20)  # the run is done, whether or not it answers
            self._thread.join(timeout=20)

    def _check_alive(self, name: str, known: int, status: Status) -> None:
        """Raise the group's error, or :class:`Stopped` if it was closed; log a further death."""
        if status.deaths > known and not self.elastic:
            who = f"{name}: a training worker of {self.size}"
            self._register_death(who, status.deaths, status.reason, status.memory)
        if self.closed:
            raise Stopped(f"{name}: stopped")
        if isinstance(self.error, ValueError):
            raise self.error
        if self.error is not None:
            raise Stopped(f"{name}: the training workers are gone: {self.error}") from self.error

    def _check(self, name: str, result: dict) -> None:
        """Raise the error that a worker reported in the place of a result."""
        if "stopped" in result:
            raise Stopped(f"{name}: {result['stopped']}")
        if "broken" in result:
            raise Stopped(f"{name}: {result['broken']}\nThe workers' own logs lie on their nodes, in {connect.logs()}.")
        if "memory" in result:
            raise ValueError(f"{name}: out of memory: {result['memory']}. {self._less_memory}")
        if "refused" in result:
            raise ValueError(f"{name}: {result['refused']}")
        if "error" in result:
            raise FloatingPointError(result["error"])

    def _register_death(self, who: str, deaths: int, reason: str, memory: str) -> bool:
        """Log a death; True if there were too many, which ends :meth:`run`. For want of ``memory`` one is too many
        once it comes again."""
        allowed, memory = self.config.placement.max_deaths, memory or self._kills.look()
        if memory:
            self.starved += 1
            held = f", and the first worker held {gigabytes(self._held)} at its last heartbeat" if self._held else ""
            line = f"{who} was killed for memory: {memory}{held}. {self._less_memory}"
            if self.starved > 1:
                self.error = ValueError(line)
            else:
                _log.info("%s It is replaced once.", line)
            return self.starved > 1
        if deaths > allowed:
            self.error = Stopped(f"{who} died ({deaths} of {allowed} allowed). {reason}")
        else:
            _log.info("%s died (%d of %d allowed): it is replaced", who, deaths, allowed)
        return deaths > allowed

    def _keep_fitting(self) -> None:
        """:meth:`_fit` in a thread; its error ends :meth:`run`."""
        try:
            self._fit()
        except BaseException as error:
            self.error = error

    def _fit(self) -> None:
        """Run Ray Train; again if its controller dies with its workers, if they do not start, or to change their
        number."""
        from ray.train import TrainingFailedError

        found = 0
        self.reserved.free_trainers()
        while not self.closed:
            try:
                self.size = 0
                if found:
                    self._ask(self.board.open.remote(), "training workers")
                self.size = found = self._settle()  # after the board is open: a dismissal from now on is of this group
                self._trainer(found).fit()
            except (*connect.deaths(), TrainingFailedError) as error:
                if self.closed:
                    return
                self.reserved.free_orphans()
                if _lacked_room(error):  # run() waits for room, and ends after its patience
                    continue
                self.deaths += 1
                who = "a training worker" if isinstance(error, TrainingFailedError) else "Ray Train's controller"
                failures = [*getattr(error, "worker_failures", {}).values()] or [error]
                memory = next(filter(None, map(out_of_memory, failures)), "")
                if self._register_death(f"{who} of {found}", self.deaths, reason_of(failures), memory):
                    return

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
        """Before a phase: let a larger group replace one that lost workers, where there is room again."""
        bigger = [n - self.size for n in self.counts if n > self.size > 0]
        if bigger and room_for_trainers(self.config, self.gpu, bigger, held=self.size, settle=1.0, wait=0.0):
            self.size = 0
            self._ask(self.board.dismiss.remote(), "training workers")

    def _patience(self, up: bool) -> float:
        """Seconds of silence after which a group is given up; before it is up, nodes may have to start."""
        placement = self.config.placement
        return placement.wait_seconds + (0 if up else placement.wait_for_resources)

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
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        bundle, *_ = trainer_bundles(self.config, self.gpu)
        # A group of fixed size is replaced by Ray Train, as often as run() allows. A group that does not start ends Ray
        # Train's run, which would try again silently and without end.
        again = 0 if self.elastic else -1
        return TorchTrainer(
            self._work,
            train_loop_config=self.setup,
            scaling_config=ScalingConfig(
                num_workers=size,
                use_gpu=self.gpu,
                resources_per_worker=bundle,
                label_selector=self.reserved.nodes or None,
            ),
            torch_config=_torch_config(self.gpu),
            run_config=RunConfig(
                name="train",
                **self._run.storage.for_ray_train(self._run.root),
                failure_config=FailureConfig(
                    max_failures=again, max_preemption_failures=again, controller_failure_limit=0
                ),
                callbacks=[_on_death(self.board)],
                worker_runtime_env={"env_vars": HEAP | (SEGMENTS if self.gpu else {})},
            ),
        )


def backends(gpu: bool) -> str:
    """The torch.distributed backends of a group: the sums of the losses lie on CPUs, which NCCL cannot add."""
    return "cpu:gloo,cuda:nccl" if gpu else "gloo"


def _torch_config(gpu: bool) -> Any:
    """Ray Train's settings of torch.distributed, with gloo on the interface of each node's address in Ray."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(choose_interface)
            super().on_start(worker_group, backend_config)

    class OwnConfig(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Backend

    return OwnConfig(backend=backends(gpu))


def _lacked_room(error: BaseException) -> bool:
    """Whether a group did not start for want of a node, which may come yet."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def reason_of(failures: Iterable[BaseException]) -> str:
    """Why training workers died: the last lines of at most three, and where their logs are."""
    lines = dict.fromkeys(f"{type(one).__name__}: {(str(one).strip().splitlines() or [''])[-1]}" for one in failures)
    return f"{'; '.join([*lines][:3])}\nThe workers' own logs lie on their nodes, in {connect.logs()}."


def _on_death(board: Any) -> Any:
    """The callback by which Ray Train reports the death of workers to the board."""
    from ray.train import UserCallback

    class OnDeath(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            failures = worker_exceptions.values()
            memory = next(filter(None, map(out_of_memory, failures)), "")
            board.register_death.remote(reason_of(failures), memory)

    return OnDeath()
