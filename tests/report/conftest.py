"""One real run for all tests of the report, of a choice from candidates, which has every metric."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = "--preset toy --engine torch --protocol candidates --ratings --decode score greedy --objective sdpo "
SMALL += "--negatives candidates --num-negatives 2 --iterations 1 --pretrain-steps 4 --first-rows 16 --valid-rows 16 "
SMALL += "--rows-per-iteration 16 --test-rows 24 --batch 8 --prefer-batch 8 --micro-batch 8 --name tiny"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, to be read only; processes that test side by side share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (base / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "tiny" / "report.html").exists():
            line = [sys.executable, "jobs/sprec.py", *SMALL.split(), "--runs", str(base)]
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            (base / "tiny.txt").write_text(done.stdout)
    return base / "tiny"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run without weights and report, to be changed."""
    ignored = shutil.ignore_patterns("policy", "*.safetensors", "tensorboard", "report.html")
    return shutil.copytree(finished, tmp_path / finished.name, ignore=ignored)
