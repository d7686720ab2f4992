"""jobs/check_gpu.py on a CPU: every check that needs no GPU passes, and an error in one is a line that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_checks_that_a_cpu_can_do_pass(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/check_gpu.py", "--device", "cpu", "--quick", "--json", str(tmp_path / "a.json")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads((tmp_path / "a.json").read_text())
    lines = {(line["check"], line["what"]): line for line in found["lines"]}
    assert {check for check, _ in lines} == {
        *("shapes", "adapters", "exact", "varlen"),
        *("phases", "resume", "speed"),
        *("beams-exact", "beams-waits", "beams", "sleep", "vllm"),
    }
    passed = {line["check"] for line in lines.values() if line["passed"]}
    assert passed >= {"adapters", "exact", "varlen", "phases", "resume", "beams-exact", "sleep"}
    assert lines["speed", "preference, K = 3"]["numbers"]["users_per_s"] > 0
    assert lines["beams", "beams of width 10"]["numbers"]["prompts_per_s"] > 0
    assert found["machine"]["torch"] and "all of" in done.stdout and done.stdout.count("| pass |") >= 7


def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "jobs/check_gpu.py"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and "error: this machine has no CUDA device. Or take --device cpu." in done.stderr
