"""vLLM's adapters as GPUs have them, on a CPU: by name and id, from policy to policy, in an engine process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge.conftest import ROOT


@pytest.mark.slow
def test_each_policy_answers_as_peft_does_whatever_came_before(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.edge.adapters_program", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    out = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
    answers = {}
    for one in out:
        for (found,), (wanted,) in zip(one["found"], one["wanted"], strict=True):
            assert found[0] == wanted[0] and found[1] == pytest.approx(wanted[1], abs=1e-3), one["version"]
        assert answers.setdefault(one["version"], one["found"]) == one["found"], one["version"]
        assert not one["apart"] and one["compared"], one
    assert len({json.dumps(found) for found in answers.values()}) == 4
