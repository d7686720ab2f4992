"""Processes of this machine, known beyond doubt: who works on a run, and what a killed driver has left."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

from rayrec.runs.manifest import read_json, write_json


def machine() -> str:
    """Where a process id means what it means here: one start of one machine and, in containers, one space of ids.

    Names alone do not do: containers that share their host's network share its name.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # another system than Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


class Processes:
    """The driver of a run and the processes that it started, on record in the run folder.

    After the driver is killed, Ray's agents live for minutes; the next start ends them, by their ids.
    """

    def __init__(self, file: Path):
        self.file = file

    def end_former(self) -> None:
        """End what a killed driver has left on this machine.

        Raises:
            ValueError: that driver is alive: two would write into each other's phases.
        """
        if not self.file.exists() or (known := read_json(self.file)).get("machine") != machine():
            return
        driver, *started = (_living(*one) for one in known["processes"])
        if driver is not None and driver.pid != os.getpid():
            raise ValueError(
                f"{self.file.parent} is being written by process {driver.pid} on this machine. Wait for its end, stop "
                "it, or take another --name."
            )
        kill(process for process in started if process is not None)

    def record(self) -> None:
        """Put on record what lives now."""
        me = psutil.Process()
        living = []
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                living.append([process.pid, birth(process)])
        write_json(self.file, {"machine": machine(), "processes": living})

    def forget(self) -> None:
        """An orderly end leaves nothing."""
        self.file.unlink(missing_ok=True)


def birth(process: psutil.Process) -> float:
    """When a process started, since the machine did: a clock that is set meanwhile would give another time of day."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # proc(5): the 22nd field, in clock ticks; the second is a name that may hold anything.
        return float(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return process.create_time()


def _living(pid: int, born: float) -> psutil.Process | None:
    """The living process of a record; ids are used again, so its birth must fit."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if birth(process) == born and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def kill_children() -> None:
    """End every process that this one started, and theirs: Ray's agents would live for minutes."""
    kill(psutil.Process().children(recursive=True))


def kill(processes: Iterable[psutil.Process]) -> None:
    """End processes, but for those that have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
