"""One driver per run: a second one is refused, a dead one replaced, and the processes that it left are ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from rayrec.driver.session import run
from rayrec.errors import Stopped
from rayrec.lanes import Lane, Planned, Shared
from rayrec.methods import parse
from rayrec.report.terminal import LaneProgress
from rayrec.runs.lease import Lease, machine, start_time
from rayrec.runs.manifest import read_json, write_json
from rayrec.runs.run import Run, open_run
from rayrec.runs.storage import DRIVER, PROCESSES, Storage


@pytest.fixture(params=["folder", "store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "copies"))
    return Storage(str(tmp_path / "runs") if request.param == "folder" else (tmp_path / "runs").as_uri(), pause=0.01)


def on(host: str, storage: Storage) -> Lease:
    """The lease of a driver on a machine of that name."""
    return Lease(storage, storage.root / "run", host, machine_id=host, beat=0.05, timeout=0.5)


def lock(storage: Storage) -> Path:
    """The lock file where all machines see it."""
    return Path(storage.url.removeprefix("file://") or storage.root) / "run" / DRIVER


def test_a_driver_is_refused_while_one_on_another_machine_lives(storage: Storage) -> None:
    with on("one", storage):
        with pytest.raises(ValueError, match=r"run is being written by process \d+ on one\. Wait .* another --name"):
            on("two", storage).check()
        begun = time.monotonic()
        on("one", storage).check()  # on its own machine, process ids have the answer
        assert time.monotonic() - begun < 0.4
    assert not lock(storage).exists()
    on("two", storage).check()


def test_a_stale_lock_is_taken_over(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    write_json(lock(storage), {"host": "one", "machine": "one", "pid": 1, "token": "dead", "beat": 7})
    on("two", storage).check()
    assert "on one; waiting" in caplog.text
    with on("two", storage):
        assert read_json(lock(storage))["host"] == "two"


def lost(lease: Lease) -> str:
    """Why a driver must stop; empty while it holds its lease."""
    try:
        lease.check_held()
    except Stopped as error:
        return str(error)
    return ""


def test_a_driver_that_was_cut_off_stops_and_keeps_its_hands_off_the_lock(storage: Storage) -> None:
    first, second = on("one", storage), on("two", storage)
    with first, second:
        for _ in range(100):
            time.sleep(0.05)
            if lost(first) or lost(second):
                break
        loser, winner = (first, second) if lost(first) else (second, first)
        assert f"is being written by process {os.getpid()} on {winner.owner['host']} now" in lost(loser)
        assert not lost(winner)
        loser.__exit__()
        assert read_json(lock(storage))["token"] == winner.owner["token"]


@pytest.mark.parametrize("text", ["{", "3", '{"host": "one"}'])
def test_a_lock_that_cannot_be_read_is_none(storage: Storage, text: str) -> None:
    lock(storage).parent.mkdir(parents=True)
    lock(storage).write_text(text)
    on("two", storage).check()


def test_the_heartbeat_survives_a_storage_that_takes_nothing(storage: Storage) -> None:
    lock(storage).parent.parent.mkdir(parents=True, exist_ok=True)
    lock(storage).parent.write_text("no folder")
    with on("one", storage):
        time.sleep(0.2)
        (beating,) = [thread for thread in threading.enumerate() if thread.name == "lease"]
        assert beating.is_alive()
    beating.join(60)
    assert not beating.is_alive()


#: Holds the lease of a run and has a child in a session of its own; ends when its input does.
HOLD = """
import subprocess, sys
from pathlib import Path
from rayrec.runs.lease import Lease
from rayrec.runs.storage import Storage
root = Path(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with (lease := Lease(Storage(str(root.parent)), root)):
    lease.record_processes()
    print(child.pid, flush=True)
    sys.stdin.read()
child.kill()
lease.processes.unlink()
"""


@contextmanager
def driver(root: Path, *before: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A process that holds the lease of ``root``, and its child's id."""
    command = [*before, sys.executable, "-c", HOLD, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            if psutil.pid_exists(child):
                psutil.Process(child).kill()


def lease_of(root: Path) -> Lease:
    return Lease(Storage(str(root.parent)), root)


def test_what_a_killed_driver_left_is_ended(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with driver(root) as (process, child):
        with pytest.raises(ValueError, match=f"is being written by process {process.pid} .* take another --name"):
            lease_of(root).check()
        left = psutil.Process(child)
        process.kill()
        process.wait(30)
        assert left.is_running()
        lease_of(root).check()
        left.wait(10)


def test_only_the_very_processes_are_ended(tmp_path: Path) -> None:
    """An id may be reused, and means another process on another machine."""
    lease = lease_of(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        try:
            lease.record_processes()
            known, started = read_json(lease.processes), start_time(psutil.Process(other.pid))
            gone = [2**22 + 1, 0.0]
            write_json(lease.processes, known | {"processes": [gone, [other.pid, started - 5]]})
            lease.check()
            write_json(lease.processes, {"machine": "elsewhere", "processes": [gone, [other.pid, started]]})
            lease.check()
            assert other.poll() is None
            write_json(lease.processes, known | {"processes": [gone, [other.pid, started]]})
            lease.check()
            assert other.wait(10)
        finally:
            other.kill()


def unshare(*options: str) -> list[str]:
    """A command's beginning that gives it names or ids of its own; empty where that is not allowed."""
    command = ["unshare", *options]
    allowed = shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode
    if not allowed:
        warnings.warn(f"unshare {options} is not allowed here: another machine is not played", stacklevel=2)
    return command if allowed else []


def test_another_space_of_process_ids_is_another_machine() -> None:
    """Two containers of one host may have one host name."""
    if apart := unshare("--pid", "--fork"):
        command = [sys.executable, "-c", "from rayrec.runs.lease import machine; print(machine())"]
        one, same = (subprocess.check_output([*before, *command], text=True).strip() for before in (apart, []))
        assert same == machine() != one and one.split()[:-1] == same.split()[:-1]


def test_the_command_is_refused_while_a_process_of_another_host_name_has_the_run(tmp_path: Path) -> None:
    if apart := unshare("--uts"):
        renamed = [*apart, "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
        with driver(tmp_path / "runs" / "mine", *renamed) as (process, _):
            args = ["--preset", "toy", "--runs", str(tmp_path / "runs"), "--name", "mine"]
            with pytest.raises(ValueError, match=rf"mine is being written by process {process.pid} on elsewhere\. "):
                run(parse("", args))
        assert not (tmp_path / "runs" / "mine" / "config.json").exists()


def test_an_opened_run_is_held_and_an_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    storage, config = Storage(str(tmp_path)), parse("", [])
    root = tmp_path / "run"
    with open_run(storage, root, config, {"data": ""}) as opened:
        opened.lease.check_held()
        assert all((root / name).exists() for name in (DRIVER, PROCESSES, "config.json"))
    assert not (root / DRIVER).exists() and not (root / PROCESSES).exists()
    with pytest.raises(KeyboardInterrupt), open_run(storage, root, config, {"data": ""}):
        raise KeyboardInterrupt
    assert not (root / DRIVER).exists() and (root / PROCESSES).exists()  # what may live on is ended by the next start


def test_a_sequential_run_that_another_driver_has_taken_stops_amid_a_phase(tmp_path: Path) -> None:
    def taken() -> None:
        raise Stopped("another driver has the run")

    end, config = threading.Event(), parse("", ["--sequential"])
    storage = Storage(str(tmp_path))
    work = Run(storage, storage.root / "mine", config, {"data": ""})
    shared = Shared(config, cast("Any", None), work, progress=LaneProgress(), check_held=taken)
    lane = Lane("trainers", shared, threads=1)
    with pytest.raises(Stopped, match="another driver"):
        lane.phase(Planned("01/sft", "sft", 1, 1, "steps"), lambda *_: {"records": [end.wait(60)]}, Path)
    end.set()
    assert len(lane.futures) == 1  # a run waits for what was submitted, read or not
    lane.close()
