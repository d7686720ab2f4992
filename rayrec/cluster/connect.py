"""Joining or starting Ray, and leaving nothing behind."""

import contextlib
import ctypes
import functools
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from rayrec.cluster.address import find_address
from rayrec.cluster.watchdog import within
from rayrec.config import AnyConfig
from rayrec.errors import Stopped
from rayrec.runs.lease import kill

_log = logging.getLogger(__name__)

# A thread that still calls Ray after the end must not start a new cluster, as Ray would by default.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
#: Seconds that starting or ending Ray may take, and that the processes of our own cluster may live after its end.
_START_SECONDS, _END_SECONDS, _LEAVE_SECONDS = 180.0, 60.0, 3.0
#: How often our own cluster is started, and words of Ray's error where its node comes up too slowly.
_STARTS, SLOW = 3, "timed out during startup"
#: The number of M_ARENA_MAX in glibc's malloc.h.
_ARENA_MAX = -8


def deaths() -> tuple[type[BaseException], ...]:
    """Errors of an actor that is gone: it died, memory ran out on its node, or no node can hold it now."""
    from ray.exceptions import ActorUnschedulableError, OutOfMemoryError, RayActorError

    return RayActorError, OutOfMemoryError, ActorUnschedulableError


def connect(config: AnyConfig) -> bool:
    """Join a cluster, or start one that has room for the plan; returns whether it is our own. ValueError: no answer."""
    share_heaps()
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # It would report one worker that is taken away every two seconds, and each report is counted as a death.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    address = find_address(config)
    if address is None and "ray" not in sys.modules:  # Ray reads its mode of authentication when it is imported
        # The processes of our own cluster listen to the network, and whoever reaches them could run any code.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray's handler would print a stack trace at SIGTERM. Its workers keep it.
    with _set("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1"):
        import ray
    from ray.exceptions import AuthenticationError

    logging.getLogger("ray").setLevel(logging.ERROR)  # it warns that another thread than the main one starts it
    debug = bool(os.environ.get("RAYREC_DEBUG"))
    init = functools.partial(ray.init, log_to_driver=debug, logging_level=logging.ERROR, configure_logging=True)
    if address is None:
        _start(config, functools.partial(init, address="local", include_dashboard=False))
    else:
        try:
            within(_START_SECONDS, f"joining the cluster at {address}", lambda: init(address=address))
        except AuthenticationError as error:
            raise ValueError(f"The cluster at {address} cannot be joined: {error}") from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"No Ray cluster answers at {address}: {error}. A cluster with tokens answers only to its own: set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
            ) from error
    return address is None


def _start(config: AnyConfig, init: Callable[..., Any]) -> None:
    """Start a cluster of our own, with one CPU more than the actors take, for Ray Data."""
    # A machine of our own has no Prometheus; idle processes stay for the rows of the next phase, which would otherwise
    # wait for new ones; and as nobody can look at the calls, the driver need not remember them.
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "3600000")
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    placement = config.placement
    workers = placement.max_train_workers or placement.train_workers
    cpus = max(workers + placement.generators + 1, os.cpu_count() or 1)
    # Ray Train's watcher would look for the dashboard for 40 s, and a shorter run would end late: it finds none.
    with _set("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:0"):
        within(_START_SECONDS, "starting Ray", lambda: _patiently(functools.partial(init, num_cpus=cpus)))


def _patiently(init: Callable[[], Any]) -> None:
    """Start Ray, again where its processes come up too slowly: Ray waits 30 s for its own node, whatever is set."""
    for left in reversed(range(_STARTS)):
        mine = {*psutil.Process().children(recursive=True)}
        try:
            init()
            return
        except Exception as error:
            if SLOW not in str(error):
                raise
            kill({*psutil.Process().children(recursive=True)} - mine)
            if not left:
                text = f"Ray did not start on this machine within 30 s, {_STARTS} times. End other work on the machine"
                raise Stopped(text) from error
            _log.info("Ray did not start within 30 s, as on a busy machine; it is started again")


def share_heaps() -> None:
    """Let the threads share two heaps: glibc gives each its own, and memory that is freed there stays there."""
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


def _node() -> Any:
    """Ray's own record of the node that this process is on; None without Ray."""
    return sys.modules["ray"]._private.worker._global_node if "ray" in sys.modules else None


def logs() -> str:
    """The folder of Ray's logs: on this node, and on others that keep Ray's files where this one does."""
    node = _node()
    return node.get_logs_dir_path() if node else ""


def leave() -> None:
    """Leave the cluster, if one was joined, or end our own; processes that outlive it are killed."""
    node = _node()
    if node is None:
        return
    own = {info.process.pid for infos in node.all_processes.values() for info in infos}
    started = list[psutil.Process]()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            started += [child, *child.children(recursive=True)] if child.pid in own else []
    try:
        within(_END_SECONDS, "the end of Ray", sys.modules["ray"].shutdown)
    except Stopped as error:
        _log.info("%s", error)
    # Actors that exit during shutdown can hang and are not ended by Ray.
    kill(psutil.wait_procs(started, timeout=_LEAVE_SECONDS)[1])
