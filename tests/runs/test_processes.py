"""Who works on a run is on record in its folder: two drivers are refused, and what a killed one left is ended."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import psutil
import pytest

from rayrec.cluster.connect import find_address
from rayrec.methods import parse
from rayrec.runs.manifest import read_json, write_json
from rayrec.runs.processes import Processes, birth, machine

DRIVER = """
import subprocess, sys, time
from pathlib import Path
from rayrec.runs.processes import Processes
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
Processes(Path(sys.argv[1])).record()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_second_driver_is_refused_and_what_a_killed_one_left_is_ended(tmp_path: Path) -> None:
    file = tmp_path / ".processes.json"
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(file)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        left = psutil.Process(int(driver.stdout.readline()))
        try:
            with pytest.raises(ValueError, match=f"is being written by process {driver.pid} .* take another --name"):
                Processes(file).end_former()
            driver.kill()
            driver.wait(30)
            assert left.is_running()
            Processes(file).end_former()
            left.wait(10)
        finally:
            driver.kill()
            if left.is_running():
                left.kill()
    assert not left.is_running()


def test_only_the_very_processes_are_ended(tmp_path: Path) -> None:
    """An id that is used again, or one of another machine, belongs to somebody else."""
    file = tmp_path / ".processes.json"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as other:
        try:
            Processes(file).record()
            known, born = read_json(file), birth(psutil.Process(other.pid))
            gone = [2**22 + 1, 0.0]
            write_json(file, known | {"processes": [gone, [other.pid, born - 5]]})
            Processes(file).end_former()
            write_json(file, {"machine": "elsewhere", "processes": [gone, [other.pid, born]]})
            Processes(file).end_former()
            assert other.poll() is None
            write_json(file, known | {"processes": [gone, [other.pid, born]]})
            Processes(file).end_former()
            assert other.wait(10)
        finally:
            other.kill()


def test_ids_of_another_space_are_those_of_another_machine() -> None:
    """Two containers of one host may have one host name."""
    apart = ["unshare", "--pid", "--fork"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], capture_output=True).returncode:
        warnings.warn("no process ids of its own allowed here: a container is not played", stacklevel=1)
        return
    command = [sys.executable, "-c", "from rayrec.runs.processes import machine; print(machine())"]
    one, same = (subprocess.check_output([*before, *command], text=True).strip() for before in (apart, []))
    assert same == machine() != one and one.split()[:-1] == same.split()[:-1]


def test_an_orderly_end_leaves_no_record(tmp_path: Path) -> None:
    processes = Processes(tmp_path / ".processes.json")
    processes.record()
    processes.forget()
    processes.end_former()
    assert not processes.file.exists()


def test_local_is_no_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert find_address(parse("", [])) == "somewhere:6379"
    assert find_address(parse("", ["--address", "local"])) is None
