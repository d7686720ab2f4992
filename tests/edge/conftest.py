"""Real runs for the edge tests: the command itself, in processes of its own, on a tiny model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from rayrec.runs.manifest import damage
from rayrec.runs.storage import Storage

ROOT = Path(__file__).parents[2]
#: Small, and with enough steps in a phase that it can be hit in the middle.
TOY = ["--preset", "toy", "--rows-per-iteration", "192", "--batch", "8", "--prefer-batch", "8", "--micro-batch", "8"]
TOY += ["--pretrain-steps", "40", "--test-rows", "128"]


class Command:
    """``python jobs/sprec.py`` with arguments, its output in a file of ``logs`` or ``runs``.

    ``before`` are words that hand it to a cluster.
    """

    def __init__(
        self,
        runs: Path,
        name: str,
        *args: str,
        env: dict[str, str] | None = None,
        url: str = "",
        before: Sequence[str] = (),
        logs: Path | None = None,
    ):
        self.folder, self.log = Storage(url or str(runs)).root / name, (logs or runs) / f"{name}.log"
        self.begun = time.time()
        command = [*before, sys.executable, "jobs/sprec.py", *TOY, "--runs", url or str(runs), "--name", name, *args]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)

    def wait(self, seconds: float = 400) -> Path:
        """Wait for success; the folder of the run."""
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        assert code == 0, self.log.read_text()[-4000:]
        return self.folder

    def until(self, condition: Callable[[dict], bool], what: str, seconds: float = 300) -> dict:
        """Poll trace.json until ``condition`` holds for it; the trace as it was then."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"ended before {what}:\n{self.log.read_text()[-4000:]}"
            trace = read_trace(self.folder)
            if trace and condition(trace):
                return trace
            time.sleep(0.05)
        raise AssertionError(f"no {what} in {seconds} s:\n{self.log.read_text()[-4000:]}")

    def finished(self, phase: str) -> bool:
        """Whether a phase is done."""
        return (self.folder / phase / "DONE").exists()

    def attempted(self, trace: dict) -> bool:
        """Whether this command has begun to work: a killed driver's last words are in the trace until then."""
        return trace["attempts"][-1]["start"] > self.begun

    def inside(self, trace: dict, phase: str, share: float = 0.0) -> bool:
        """Whether a phase is at work, for some steps, parts or tenths of a second, and is not finished.

        ``share``: of a training phase's steps, at least so much.
        """
        running = trace["running"].get(phase, {}) if self.attempted(trace) else {}
        begun = running.get("step") or running.get("parts") or time.time() - running.get("started", 1e12) > 0.3
        begun = begun and (not share or running.get("step", 0) >= share * running.get("steps", 1e12))
        return bool(begun) and not self.finished(phase)

    def until_inside(self, phase: str, seconds: float = 300, share: float = 0.0) -> dict:
        """Wait until a phase is at work, as :meth:`inside` has it."""
        return self.until(lambda trace: self.inside(trace, phase, share), f"step inside {phase}", seconds)

    def at_some_moment(self, draw: random.Random, phases: Sequence[str], most: float) -> str:
        """Wait until the first of ``phases`` that is still at work at a random moment, up to ``most`` seconds on."""
        for phase in phases:
            self.until(partial(self._at_work_or_over, phase=phase), f"step inside {phase}")
            if not self.finished(phase):
                time.sleep(draw.uniform(0, most))
            if not self.finished(phase):
                return phase
        raise AssertionError(f"{', '.join(phases)}: over before their moments:\n{self.log.read_text()[-4000:]}")

    def _at_work_or_over(self, trace: dict, phase: str) -> bool:
        return self.inside(trace, phase) or self.finished(phase)

    @property
    def driver(self) -> int:
        """Process id of the driver, which is another than ours where it was submitted."""
        return read_trace(self.folder)["attempts"][-1]["pid"]

    def kill(self) -> None:
        """SIGKILL the driver."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


def read_trace(folder: Path) -> dict:
    """The trace of a run, empty where there is none yet."""
    try:
        return json.loads((folder / "trace.json").read_text())
    except FileNotFoundError:
        return {}


def contents(folder: Path) -> dict[str, str]:
    """sha256 of every file of every finished phase, pruned ones too, from the manifests, which the files agree with."""
    manifests = sorted(folder.glob("*/*/DONE"))
    damaged = {str(path.parent): found for path in manifests if (found := damage(path.parent))}
    assert not damaged, damaged
    return {
        f"{path.parent.relative_to(folder)}/{entry['name']}": entry["sha256"]
        for path in manifests
        for entry in json.loads(path.read_text())["files"]
    }


def descendants(pid: int) -> set[int]:
    """Living processes that were started by ``pid`` or by what it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= new
    return found


def title(pid: int) -> str:
    """The command line of a process, empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pids: set[int]) -> set[int]:
    """Those of ``pids`` that still run (zombies do not)."""
    left = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                left.add(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return left


def gone(pids: set[int], seconds: float = 15) -> bool:
    """Whether all of ``pids`` have ended within ``seconds``."""
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not alive(pids)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs of the session."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def overlapped(runs: Path) -> Iterator[Path]:
    """An undisturbed run, which the others are compared with."""
    yield Command(runs, "overlapped", "--decode", "greedy", "beams", "--keep", "all").wait()


os.environ.setdefault("HF_HUB_OFFLINE", "1")
