"""Signals end a process in order, wherever its main thread waits, and a second one ends it at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.edge.conftest import gone

ROOT = Path(__file__).parents[1]
LINE = "stopped; the same command goes on at the first unfinished phase\n"

WAITS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from rayrec import signals

signals.catch()
print("ready", flush=True)
pool = ThreadPoolExecutor(2)
try:
    while True:
        signals.wait_for([pool.submit(signals.pause, 0.002) for _ in range(8)])
        signals.pause(0.001)
except KeyboardInterrupt:
    signals.announce()
    sys.exit(signals.EXIT_CODE)
"""

COMPUTES = """
import hashlib, subprocess
from rayrec import signals

signals.catch()
print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
hashlib.pbkdf2_hmac("sha512", b"long", b"", 10**9)  # in C, where no handler of Python runs
"""


def started(script: str) -> tuple[subprocess.Popen[str], str]:
    """A process of the script, and the first line that it prints."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Under nohup these tests inherit an ignored SIGHUP, which a process of its own keeps ignoring.
    script = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n" + script
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, **pipes)
    assert process.stdout
    return process, process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_any_wait_with_one_line(number: signal.Signals) -> None:
    draw = random.Random(int(number))
    for _ in range(6):
        process, _ = started(WAITS)
        time.sleep(draw.uniform(0, 0.1))
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert (process.returncode, said) == (130, LINE)


def test_a_second_signal_ends_the_process_and_its_children_at_once() -> None:
    process, child = started(COMPUTES)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, LINE)
    assert gone({int(child)})


def test_other_threads_are_not_interrupted() -> None:
    script = WAITS.replace("pool = ", "import time\npool = ").replace(
        "    while True:\n",
        "    late = pool.submit(lambda: (signals.pause(1.0), print('late', flush=True)))\n    while True:\n",
    )
    process, _ = started(script)
    process.send_signal(signal.SIGTERM)
    told, said = process.communicate(timeout=20)
    assert (process.returncode, told, said) == (130, "late\n", LINE)
