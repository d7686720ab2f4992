"""Two drivers on two machines: one writes, the other is told; a dead one is succeeded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, cast

import pytest

from rayrec.driver.session import run
from rayrec.errors import Stopped
from rayrec.lanes import Lane, Shared
from rayrec.methods import parse
from rayrec.runs import storage as storages
from rayrec.runs.lease import Lease
from rayrec.runs.manifest import read_json
from rayrec.runs.run import lease
from rayrec.runs.storage import DRIVER, Storage


@pytest.fixture(params=["folder", "store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "copies"))
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "SILENCE", 0.5)
    monkeypatch.setattr(storages, "_PAUSE", 0.01)
    return Storage(str(tmp_path / "runs") if request.param == "folder" else (tmp_path / "runs").as_uri())


def on(host: str, storage: Storage) -> Lease:
    made = Lease(storage, storage.root / "run")
    made._me |= {"host": host, "machine": host}
    return made


def sign(storage: Storage) -> Path:
    """Where all machines see it."""
    return Path(storage.url.removeprefix("file://") or storage.root) / "run" / DRIVER


def test_a_driver_on_another_machine_is_heard(storage: Storage) -> None:
    with on("one", storage):
        with pytest.raises(ValueError, match=r"run is being written by process \d+ on one\. Wait .* another --name"):
            on("two", storage).check()
        begun = time.monotonic()
        on("one", storage).check()  # process ids tell of drivers on this machine
        assert time.monotonic() - begun < 0.4
    assert not sign(storage).exists()
    on("two", storage).check()


def test_a_dead_driver_is_succeeded(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    dead = on("one", storage)
    dead._say(7)
    on("two", storage).check()
    assert "on one; waiting" in caplog.text
    with on("two", storage):
        assert read_json(sign(storage))["host"] == "two"


def test_a_driver_that_was_cut_off_stops_and_leaves_the_other_alone(storage: Storage) -> None:
    first = on("one", storage)
    with first:
        second = on("two", storage)
        with second:
            for _ in range(100):
                time.sleep(0.05)
                if first._lost or second._lost:
                    break
            one, other = (first, second) if first._lost else (second, first)
            with pytest.raises(Stopped, match=rf"is being written by process \d+ on {other._me['host']} now"):
                one.check_held()
            other.check_held()
            one.__exit__()
            assert read_json(sign(storage))["token"] == other._me["token"]


@pytest.mark.parametrize("text", ["{", "3", '{"host": "one"}'])
def test_a_sign_that_cannot_be_read_is_none(storage: Storage, text: str) -> None:
    sign(storage).parent.mkdir(parents=True)
    sign(storage).write_text(text)
    on("two", storage).check()


def test_a_storage_that_takes_nothing_does_not_stop_the_thread(storage: Storage) -> None:
    sign(storage).parent.parent.mkdir(parents=True, exist_ok=True)
    sign(storage).parent.write_text("no folder")
    with on("one", storage):
        time.sleep(0.2)
        (beating,) = [thread for thread in threading.enumerate() if thread.name == "lease"]
    beating.join(60)
    assert not beating.is_alive()


#: Holds the run of a folder until it is told to end.
HOLD = "import sys, pathlib; from rayrec import lease, storage; folder = pathlib.Path(sys.argv[1])\n"
HOLD += "with lease.Lease(storage.Storage(str(folder.parent)), folder): print('held', flush=True); sys.stdin.read()"


def test_the_command_is_refused_while_a_process_of_another_host_name_has_the_run(tmp_path: Path) -> None:
    elsewhere = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*elsewhere, "true"], capture_output=True).returncode:
        warnings.warn("no host name of its own allowed here: another machine is not played", stacklevel=1)
        return
    command = [*elsewhere, sys.executable, "-c", HOLD, str(tmp_path / "runs" / "mine")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "held\n"
        args = ["--preset", "toy", "--runs", str(tmp_path / "runs"), "--name", "mine"]
        with pytest.raises(ValueError, match=rf"mine is being written by process {other.pid} on elsewhere\. Wait"):
            run(parse("", args))
        other.stdin.close()
    assert not (tmp_path / "runs" / "mine" / "config.json").exists()


def test_a_sequential_run_that_another_driver_has_taken_stops_amid_a_phase() -> None:
    def lost() -> None:
        raise Stopped("another driver has the run")

    end, config = threading.Event(), parse("", ["--sequential"])
    lane = Lane("trainers", Shared(config, *cast("Any", [None] * 7), check_held=lost), threads=1)
    with pytest.raises(Stopped, match="another driver"):
        lane.submit(lambda: end.wait(60))
    end.set()
    assert len(lane.futures) == 1  # a run waits for what was submitted, read or not
    lane.close()
