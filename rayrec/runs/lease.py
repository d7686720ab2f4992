"""A lock file with a heartbeat: one driver per run; a stale lock is taken over.

The file ``.driver.json`` is in the storage, where every machine sees it. Clocks differ between machines, so a driver
counts as alive when its heartbeat changes while another driver watches. ``.processes.json`` lists the processes that
the driver started on its machine: Ray's agents outlive a killed driver by minutes, and the next start kills them.
"""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil

from rayrec import signals
from rayrec.errors import Stopped
from rayrec.runs.manifest import read_json, write_json
from rayrec.runs.storage import DRIVER, PROCESSES, Storage

_log = logging.getLogger(__name__)


def machine() -> str:
    """Identity of the space of process ids: the host name, which containers may share, its boot and pid namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


class Lease:
    """The right to write the run ``root``, held inside ``with``; ``beat`` and ``timeout`` in seconds."""

    def __init__(
        self, storage: Storage, root: Path, host: str = "", machine_id: str = "", beat: float = 5, timeout: float = 20
    ):
        self.storage, self.file, self.processes = storage, root / DRIVER, root / PROCESSES
        self.beat, self.timeout, self._lost = beat, timeout, ""
        self.owner = {"host": host or socket.gethostname(), "machine": machine_id or machine()}
        self.owner |= {"pid": os.getpid(), "token": uuid.uuid4().hex}
        self._over, self._thread = threading.Event(), threading.Thread(target=self._run, name="lease", daemon=True)

    def check(self) -> None:
        """Kill what a killed driver left here, and wait until another's lock is stale; ValueError if it lives."""
        self._end_former()
        first = self._read()
        if not first or first["machine"] == self.owner["machine"]:  # on this machine, process ids have the answer
            return
        whose, end = f"process {first['pid']} on {first['host']}", time.monotonic() + self.timeout
        _log.info("run: was written by %s; waiting %.0f s for its heartbeat", whose, self.timeout)
        while time.monotonic() < end:
            signals.pause(min(1.0, self.timeout / 10))
            if (now := self._read()) and now != first:
                raise _busy(self.storage.name(self.file.parent), whose)

    def __enter__(self) -> None:
        self._write(0)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        if self._thread.is_alive():
            self._over.set()
            self._thread.join(timeout=self.beat)
            with contextlib.suppress(OSError, Stopped):
                self.file.unlink(missing_ok=True)
                self.storage.remove(self.file)

    def check_held(self) -> None:
        """Raise :class:`Stopped` once another driver has taken the lock over."""
        if self._lost:
            raise Stopped(self._lost)

    def record_processes(self) -> None:
        """Write down this process and its children."""
        me = psutil.Process()
        living = []
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                living.append([process.pid, start_time(process)])
        write_json(self.processes, {"machine": self.owner["machine"], "processes": living})

    def _end_former(self) -> None:
        if not self.processes.exists() or (known := read_json(self.processes)).get("machine") != self.owner["machine"]:
            return
        driver, *started = (_living(*one) for one in known["processes"])
        if driver is not None and driver.pid != os.getpid():
            raise _busy(str(self.file.parent), f"process {driver.pid} on this machine")
        kill(process for process in started if process is not None)

    def _read(self) -> dict:
        """The last heartbeat; empty if the file is missing or not readable."""
        with contextlib.suppress(OSError, Stopped, ValueError):
            self.storage.download_file(self.file)
            found = read_json(self.file)
            if {*self.owner, "beat"} <= found.keys():
                return found
        return {}

    def _write(self, number: int) -> None:
        with contextlib.suppress(OSError, Stopped):  # a storage that fails stops the run where it writes results
            write_json(self.file, {**self.owner, "beat": number})
            self.storage.upload(self.file)

    def _run(self) -> None:
        number = 0
        while not self._over.wait(self.beat):
            if (found := self._read()) and found["token"] != self.owner["token"]:
                whose = f"process {found['pid']} on {found['host']}"
                self._lost = f"{self.storage.name(self.file.parent)} is being written by {whose} now."
                return
            self._write(number := number + 1)


def _busy(run: str, whose: str) -> ValueError:
    return ValueError(f"{run} is being written by {whose}. Wait for its end, stop it, or take another --name.")


def start_time(process: psutil.Process) -> float:
    """Start of a process on the clock since boot: the clock of the day may be set while it lives."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # proc(5): the 22nd field, in clock ticks; the second is a name that may hold spaces and brackets.
        return float(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return process.create_time()


def _living(pid: int, started: float) -> psutil.Process | None:
    """The recorded process if it lives; ids are reused, so its start time must match."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if start_time(process) == started and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def kill_children() -> None:
    """Kill all descendants of this process: Ray's agents would live for minutes."""
    kill(psutil.Process().children(recursive=True))


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes; those that have ended are skipped."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
