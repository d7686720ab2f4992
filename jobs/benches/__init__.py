"""The benches of `jobs/bench.py`: modules with `cases`, `shown` and `measure`, and for its table and records:

PACKAGES, whose versions are printed; UNIT of the rates; SIZE and COLUMNS of the setting; FACTS, further results of
`measure` after ``rate`` and ``memory``; and PAIRS, the FACTS that are printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_cluster() -> Iterator[None]:
    """Ray on two cores of this machine, as a run starts it: without a dashboard."""
    from rayrec.cluster import connect

    connect.share_heaps()
    os.environ["RAY_task_events_report_interval_ms"] = "0"  # noqa: SIM112
    import ray

    runtime = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=runtime)
    try:
        yield
    finally:
        ray.shutdown()


def reset_peak() -> int:
    """Forget the process's peak memory so far; returns the bytes in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most memory in use since :func:`reset_peak`, in bytes."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
