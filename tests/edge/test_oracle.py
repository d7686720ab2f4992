"""The process that trains the oracle, on a real Ray: its silence has a limit."""

from __future__ import annotations

import subprocess
import sys

from tests.edge.conftest import ROOT

SCRIPT = """
import time
from rayrec.training import oracle  # before Ray, which else joins whatever cluster it finds
import ray
from rayrec.report.terminal import show_log

class Idle:
    '''Stands still, and answers.'''
    def fit(self):
        time.sleep(600)
    def passes(self):
        return 7

show_log()
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
oracle._INTERVAL = 0.2
idle = ray.remote(Idle).options(num_cpus=0, max_concurrency=2).remote()
try:
    oracle.wait_for_passes(idle, idle.fit.remote(), 3.0)
except oracle.Stopped as error:
    print("STOPPED", error)
"""


def test_an_oracle_that_stands_still_ends_the_run() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "STOPPED 00/oracle: the process that trains it has done nothing for 3 s" in done.stdout, done.stderr[-3000:]
    assert "has done nothing for 2 s; given up after 3 s" in done.stdout
