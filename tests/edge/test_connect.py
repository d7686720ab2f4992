"""A cluster of our own on a busy machine: Ray gives up on its node after 30 s, and is started again."""

from __future__ import annotations

import subprocess
import sys

from tests.edge.conftest import ROOT

#: Ray asks for its own node, which fails for 30 s where the machine is busy; here as often as the argument says.
SCRIPT = """
import sys
import psutil
from rayrec.cluster import connect
from rayrec.methods import parse
from rayrec.report.terminal import show_log
import ray
from ray._private import services

known, asked = services.get_node, []

def late(*args):
    asked.append(args)
    if len(asked) <= int(sys.argv[1]):
        raise Exception("The current node timed out during startup. This could happen because ...")
    return known(*args)

services.get_node = late
show_log()
try:
    connect.connect(parse("", ["--preset", "toy", "--address", "local"]))
    print("NODES", len(ray.nodes()), len([p for p in psutil.Process().children() if "raylet" in p.name()]))
finally:
    connect.leave()
"""


def start(failures: int) -> str:
    line = [sys.executable, "-c", SCRIPT, str(failures)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=200)
    return done.stdout + done.stderr


def test_ray_is_started_again() -> None:
    said = start(1)
    assert said.count("it is started again") == 1 and "NODES 1 1" in said, said[-3000:]


def test_ray_that_never_comes_up_ends_the_run() -> None:
    said = start(3)
    assert said.count("it is started again") == 2, said[-3000:]
    assert said.strip().endswith(
        "Ray did not start on this machine within 30 s, 3 times. End other work on the machine"
    )
