"""jobs/evaluate.py on a policy that another run made, and on nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rayrec.commands.evaluate import read
from rayrec.driver.session import run
from tests.edge.conftest import ROOT, TOY, contents, read_trace
from tests.edge.test_runs import records


def evaluate(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "jobs/evaluate.py", *args], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_policy_is_evaluated_as_in_its_own_run(runs: Path, overlapped: Path) -> None:
    own = overlapped / "00" / "sft" / "policy"
    args = ["--policy", str(own), "--decode", "greedy", "beams", "--runs", str(runs)]
    done = evaluate(*TOY, *args, "--name", "evaluated")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = runs / "evaluated"
    assert {path.rpartition("/")[0].split("/policy")[0] for path in contents(folder)} == {"00/baseline", "00/evaluate"}
    assert "tuned, 00/sft (base)" in done.stdout and "tuned by rayrec (00/sft); template compact" in done.stdout
    assert "not tuned" not in done.stdout + (folder / "report.html").read_text()
    found, wanted = (
        [r for r in records(f) if r["kind"] == "evaluation" and r["iteration"] == 0] for f in (folder, overlapped)
    )
    same = found[0].keys() - {"policy", "model"}
    assert [{k: r[k] for k in same} for r in found] == [{k: r[k] for k in same} for r in wanted]
    assert {r["policy"] for r in found} == {"base"}
    events = read_trace(folder)["traceEvents"]
    assert not [e for e in events if e["pid"] == "trainers"]  # no training process was started
    assert json.loads((folder / "config.json").read_text())["config"]["train"]["first_rows"] == 0


def test_a_policy_is_asked_as_in_its_own_run_alone(
    runs: Path, overlapped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*TOY, "--policy", str(overlapped), "--runs", str(runs), "--dry-run"]
    with pytest.raises(ValueError, match="was tuned with --history 10 and knows no other prompt"):
        run(read([*args, "--history", "5"]))
    run(read(args))
    assert "overlapped-0" in capsys.readouterr().out  # the run's best policy names the folder
