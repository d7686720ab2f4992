"""Joining or starting Ray, and leaving nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import psutil

from rayrec.cluster import reserve
from rayrec.config import AnyConfig, BaselinesConfig, Config
from rayrec.errors import Stopped
from rayrec.runs.lease import kill
from rayrec.runs.storage import Storage

_log = logging.getLogger(__name__)


T = TypeVar("T")
C = TypeVar("C", Config, BaselinesConfig)

# A thread that still asks after the end must not start a new cluster, as Ray would by default.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
#: A head greets in milliseconds; what says nothing for so long is none, or is stopped.
_GREETING_SECONDS = 8.0
#: Processes of our own cluster have so long to end after it has.
_LEAVING = 3.0
#: Its number in glibc's malloc.h.
_ARENA_MAX = -8
#: The empty settings frame of HTTP/2: three bytes of length, the type 4, one of flags, four of the stream.
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def submitted() -> bool:
    """Whether this process is the entry point of a submitted Ray job, which runs in a copy of the working folder."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def settle_runs(runs: str | None, **others: str | None) -> str:
    """Where runs are written; refuses paths that mean nothing in a submitted job, those of ``others`` (flags) too.

    Raises:
        ValueError: a path is relative and this is a submitted job.
    """
    runs = runs or (str(Path.home() / "rayrec-runs") if submitted() else "runs")
    for flag, path in {"runs": runs, **others}.items():
        if submitted() and path and "://" not in path and not Path(path).is_absolute():
            raise ValueError(
                f"--{flag} {path} is relative, but a submitted job runs in a copy of the working folder that is thrown "
                "away. Give an absolute path that every node sees."
            )
    return runs


def settle_paths(config: C) -> C:
    """Fill in where runs are written.

    Raises:
        ValueError: as in :func:`settle_runs`, or ``--runs`` is no store.
    """
    runs = settle_runs(config.output.runs, data=config.data.data, json=getattr(config, "json", None))
    Storage(runs).check()
    return dataclasses.replace(config, output=dataclasses.replace(config.output, runs=runs))


def check_address(config: AnyConfig) -> None:
    """Refuse an address at which no cluster can be.

    Raises:
        ValueError: ``--address`` or ``RAY_ADDRESS`` is a dashboard's, nothing answers there, or it is ``auto`` and no
            cluster was made by ``ray start``.
    """
    named = config.placement.address or os.environ.get("RAY_ADDRESS")
    flag = "--address" if config.placement.address else "RAY_ADDRESS"
    if named and named.startswith("http"):
        raise ValueError(
            f"{flag} {named} is a dashboard, wanted HOST:PORT of the cluster itself (`ray start` prints it). To a "
            f"dashboard, submit: ray job submit --address {named} --working-dir . -- python jobs/sprec.py ..."
        )
    if named == "auto" and find_address(config) is None:
        raise ValueError(
            f"{flag} auto: no cluster made by `ray start` runs on this machine, and another driver's private one is "
            "not joined. Give HOST:PORT, start one with `ray start --head`, or leave the address out."
        )
    if named and ":" in named and "://" not in named and not _answers(named):
        raise ValueError(
            f"{flag} {named}: no Ray cluster answers there. Start one with `ray start --head`, or leave the address "
            "out to compute on this machine."
        )


def find_address(config: AnyConfig) -> str | None:
    """The cluster to join: --address, RAY_ADDRESS, or a living one that this user made by ``ray start``; None for one
    of our own.

    Another driver's private cluster is never joined, not by ``auto`` either, with which Ray itself would. ``local``, as
    Ray has it, is one of our own whatever runs here.
    """
    named = config.placement.address or os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        return None if named == "local" else named
    # Written by `ray start` only, and left behind when that cluster is killed. Read here: Ray's import takes a second.
    folder = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    file = Path(folder, "ray", "ray_current_cluster")
    # Everybody may write there, and whoever joins a cluster runs what it is told.
    made = file.read_text().strip() if file.exists() and file.stat().st_uid == os.getuid() else ""
    return made if made and _answers(made) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except (OSError, ValueError):  # ValueError: the port is no number
        return False


def _check_greeting(address: str) -> None:
    """Refuse what listens and is no Ray: Ray's own client asks it for minutes, and says nothing of use.

    A cluster's head speaks gRPC, and so begins with the settings frame of HTTP/2 (RFC 9113, sections 3.4 and 6.5).

    Raises:
        ValueError: something else came, or nothing for ``_GREETING_SECONDS``.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # its head shakes hands with certificates first
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_GREETING_SECONDS) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
            said = connection.recv(len(_SETTINGS))
    except OSError:
        said = b""
    if said[3:4] != _SETTINGS[3:4]:
        raise ValueError(_no_cluster(address, f"greets with {said!r}" if said else "says nothing"))


def _no_cluster(address: str, how: str) -> str:
    return (
        f"--address (or RAY_ADDRESS) {address}: what listens there {how}, wanted the head of a Ray cluster. Give the "
        "HOST:PORT that `ray start --head` prints, or leave the address out to compute on this machine."
    )


def deaths() -> tuple[type[BaseException], ...]:
    """Errors that tell of an actor that is gone: it died, memory ran out on its node, or no node can hold it now."""
    from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayActorError

    return RayActorError, OutOfMemoryError, ActorUnschedulableError


def has_gpu(config: AnyConfig) -> bool:
    """Resolve ``--device`` for a machine or cluster that is not joined yet.

    `auto` is what a cluster has: its head, where a submitted job's driver is, may have no GPU.

    Raises:
        ValueError: ``--device gpu`` on one machine without a GPU, or with fewer than the plan takes, or a cluster that
            wants another token.
    """
    import torch

    device, address = config.placement.device, find_address(config)
    found = _resources(address) if address else None
    if device == "gpu" and not torch.cuda.is_available() and address is None:
        raise ValueError(
            "--device gpu: this machine has no CUDA device. Join a cluster with --address, or --device cpu."
        )
    there = torch.cuda.is_available() if found is None else found["GPU"] > 0
    gpu = device == "gpu" or (device == "auto" and there)
    wanted, here = _wanted(config, True), torch.cuda.device_count()
    if gpu and here < (cards := math.ceil(wanted["GPU"])) and address is None:
        raise ValueError(
            f"The plan takes {cards} GPUs, this machine has {here}. Lower --train-workers, "
            "--generators or --tensor-parallel, add --placement shared, or join a cluster with --address."
        )
    return gpu


def runs_at_once(config: AnyConfig) -> int:
    """For how many runs like this one the cluster has room, by its totals; 1 where there is none to join."""
    address = find_address(config)
    found = _resources(address) if address else None
    if found is None:
        return 1
    wanted = _wanted(config, has_gpu(config))
    return max(1, min(int(found[name] // amount) for name, amount in wanted.items()))


def _resources(address: str) -> Counter[str] | None:
    """What a cluster that is not joined has in all; None where nothing answers: joining it will say why.

    Raises:
        ValueError: it has another token than this process, or what answers is no cluster.
    """
    if not _answers(address):  # a Ray client's, or no HOST:PORT
        return None
    _check_greeting(address)
    from ray import _raylet
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray.core.generated import gcs_pb2
    from ray.exceptions import AuthenticationError, RayError

    client, alive = getattr(_raylet, "GcsClient"), getattr(gcs_pb2, "GcsNodeInfo").ALIVE  # noqa: B009, not typed
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one a client would end the process
        nodes = client(address=address).get_all_node_info(timeout=10)
    except AuthenticationError as error:
        raise ValueError(
            f"The cluster at {address} cannot be joined: {error.message}. Set RAY_AUTH_MODE=token, and its token in "
            "RAY_AUTH_TOKEN or the path of a file with it in RAY_AUTH_TOKEN_PATH."
        ) from error
    except RayError as error:
        raise ValueError(_no_cluster(address, f"answers with {str(error).splitlines()[0]!r}")) from error
    total = Counter[str]()
    for node in nodes.values():
        total.update(node.resources_total if node.state == alive else {})
    return total


def _wanted(config: AnyConfig, gpu: bool) -> Counter[str]:
    """What trainers and generators take in all."""
    wanted = Counter[str]()
    for bundle in [
        *reserve.trainer_bundles(config, gpu),
        *reserve.generator_bundles(config, gpu) * config.placement.generators,
    ]:
        wanted.update(bundle)  # pyright: ignore[reportArgumentType], halves of cards too
    return wanted


def connect(config: AnyConfig) -> bool:
    """Join a cluster, or start one of our own that has room for the plan; returns whether it is our own.

    Raises:
        ValueError: the cluster cannot be reached.
    """
    share_heaps()
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # It would tell of one worker that is taken away every two seconds, and those tellings are counted as deaths.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    address, placement = find_address(config), config.placement
    if address is None and "ray" not in sys.modules:  # Ray reads how it is asked who one is when it is imported
        # Its processes listen to the network, and whoever reaches them could run what they like.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray.exceptions import AuthenticationError

    quiet: dict[str, Any] = {
        "log_to_driver": bool(os.environ.get("RAYREC_DEBUG")),
        "logging_level": "ERROR",
        "configure_logging": True,
    }
    if address is None:
        # A machine of our own has no Prometheus; and idle processes stay for the next phase, whose
        # rows would otherwise wait for new ones to start.
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "3600000")
        # Nobody can look at its calls, so the driver need not remember them.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        # One CPU more than the actors take, for Ray Data.
        workers = placement.max_train_workers or placement.train_workers
        cpus = max(workers + placement.generators + 1, os.cpu_count() or 1)
        # Ray Train's watcher would look for the dashboard for 40 s, and a shorter run would end late: it finds none.
        with _set("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:0"):
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except AuthenticationError as error:
            raise ValueError(f"The cluster at {address} cannot be joined: {error}") from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"No Ray cluster answers at {address}: {error}. A cluster with tokens answers only to its own: set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
            ) from error
    interrupt_on_signals()  # after Ray, which sets a SIGTERM handler of its own
    return address is None


def share_heaps() -> None:
    """Let the threads of this process share two heaps.

    By itself glibc gives each of the lanes' many threads one of its own, and what is freed there stays there.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)


@contextlib.contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    """An environment variable for the processes that are started meanwhile."""
    former = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if former is not None:
            os.environ[name] = former


def within(seconds: float, what: str, work: Callable[[], T]) -> T:
    """What ``work`` returns, where Ray itself sets it no limit.

    Raises:
        Stopped: it has not returned after so many seconds.
    """
    done = SimpleQueue[Future[T]]()

    def do() -> None:
        future = Future[T]()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        done.put(future)

    threading.Thread(target=do, name=what, daemon=True).start()
    try:
        return done.get(timeout=seconds).result()
    except Empty:
        raise Stopped(f"{what} took longer than {seconds:.0f} s") from None


def _node() -> Any:
    """Ray's own record of the node that this process is on; None without Ray."""
    return sys.modules["ray"]._private.worker._global_node if "ray" in sys.modules else None


def logs() -> str:
    """The folder of Ray's logs: on this node, and on others that keep Ray's files where this one does."""
    node = _node()
    return node.get_logs_dir_path() if node else ""


def leave() -> None:
    """Leave the cluster, if one was joined, or end our own: what does not end with it is killed."""
    node = _node()
    if node is None:
        return
    own = {info.process.pid for infos in node.all_processes.values() for info in infos}
    started = list[psutil.Process]()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            started += [child, *child.children(recursive=True)] if child.pid in own else []
    try:
        within(60.0, "the end of Ray", sys.modules["ray"].shutdown)
    except Stopped as error:
        _log.info("%s", error)
    # An actor that leaves by itself as its node ends is no longer the node's to end, and now and then stands still.
    kill(psutil.wait_procs(started, timeout=_LEAVING)[1])


def interrupt_on_signals() -> None:
    """End the run in an orderly way on SIGTERM (``ray job stop``, a scheduler) and on Ctrl-C.

    Both are set here: a background shell lets its children ignore SIGINT.
    """

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
