"""What the other jobs say to wrong words, before anything is started or written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def job(name: str, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, f"jobs/{name}.py", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "No method is named. Add --methods"),
        (["--methods", "BIGRec", "SPRec", "--vary", "beta", "low"], "--vary beta low: wanted numbers"),
        (["--methods", "BIGRec", "SPRec", "--vary", "beta", "0"], "--objective dpo: Found beta = 0.0"),
        (["--methods", "BIGRec", "MoRec"], "MoRec reads item vectors from titles"),
        (["--methods", "SPRec"], "--against BIGRec is not compared"),
        (["--methods", "BIGRec", "--seeds", "1", "1"], "--seeds [1, 1] has one twice"),
        (["--methods", "BIGRec", "--k", "7"], "--k 7 is not among --top-k"),
        (["--methods", "BIGRec", "--lr", "-1"], "--lr is -1.0"),
        (["--methods", "BIGRec", "--at-once", "0"], "--at-once is 0"),
    ],
)
def test_wrong_words_are_refused_before_any_cell(tmp_path: Path, args: list[str], says: str) -> None:
    done = job("compare", *args, "--runs", str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith(f"error: {says}") and not list(tmp_path.iterdir())


def test_unknown_methods_and_flags_are_refused(tmp_path: Path) -> None:
    done = job("compare", "--methods", "GRPO", "--runs", str(tmp_path))
    assert done.returncode == 2 and "invalid choice: 'GRPO'" in done.stderr
    done = job("compare", "--methods", "BIGRec", "--learning-rate", "1", "--runs", str(tmp_path))
    assert done.returncode == 2 and "--learning-rate" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "--policy is missing"),
        (["--policy"], "--policy is missing"),
        (["--policy", "./nowhere"], "error: model ./nowhere: no such folder"),
    ],
)
def test_no_policy_is_refused(tmp_path: Path, args: list[str], says: str) -> None:
    done = job("evaluate", "--preset", "toy", "--runs", str(tmp_path), *args)
    assert done.returncode == 1 and says in done.stderr and not list(tmp_path.iterdir())
