"""SIGTERM and SIGINT at any moment of a run: one line, exit status 130, nothing left running, and it goes on."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest

from tests.edge.conftest import Command, alive, contents, descendants, gone, title

LINE = "stopped; the same command goes on at the first unfinished phase"
ARGS = ("--iterations", "1", "--engine", "torch", "--no-share", "--checkpoint-seconds", "1")


def catches(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM, which Python itself has not: its start is over."""
    found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(found and int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


def strike(command: Command, number: int, seconds: float) -> bool:
    """Send a signal some seconds after the start; whether the run was ended by it and not by itself."""
    begun = command.log.stat().st_size
    while command.process.poll() is None and not catches(command.process.pid):
        time.sleep(0.02)
    time.sleep(seconds)
    started = descendants(command.process.pid)
    command.process.send_signal(number)
    started |= descendants(command.process.pid)
    code = command.process.wait(60)
    said = command.log.read_bytes()[begun:].decode()
    assert "Traceback" not in said and "SIGTERM" not in said, said[-4000:]
    assert code == 0 or (code == 130 and said.count(LINE) == 1 and said.splitlines()[-1].endswith(LINE)), said[-4000:]
    assert gone(started), {title(pid) for pid in alive(started)}
    return code == 130


def strike_often(runs: Path, name: str, signals: int, seed: int, most: float) -> tuple[Path, int]:
    """Give the same command and end it at random moments until so many signals were sent or the run is complete.

    Returns the folder of the complete run, and how many signals ended it before.
    """
    draw, ended = random.Random(seed), 0
    for _ in range(signals):
        command = Command(runs, name, *ARGS)
        try:
            ended += strike(command, draw.choice([signal.SIGTERM, signal.SIGINT]), draw.uniform(0, most))
        finally:
            command.process.kill()
        if (command.folder / "report.html").exists():
            break
    return Command(runs, name, *ARGS).wait(), ended


@pytest.fixture(scope="module")
def undisturbed(runs: Path) -> Path:
    return Command(runs, "no signal", *ARGS).wait()


@pytest.mark.slow
def test_signals_change_nothing(runs: Path, undisturbed: Path) -> None:
    command = Command(runs, "signals", *ARGS)
    command.until_inside("01/sft")
    assert strike(command, signal.SIGTERM, 0.0)
    assert contents(command.folder).items() <= contents(undisturbed).items()
    folder, ended = strike_often(runs, "signals", 1, seed=0, most=8.0)
    assert ended and contents(folder) == contents(undisturbed)
    assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_fifty_signals_change_nothing(runs: Path, undisturbed: Path) -> None:
    sent = number = 0
    while sent < 50:
        number += 1
        folder, ended = strike_often(runs, f"signals {number}", 50 - sent, seed=number, most=25.0)
        sent += max(1, ended)
        assert contents(folder) == contents(undisturbed)
        assert (folder / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
