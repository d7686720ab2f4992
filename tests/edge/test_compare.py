"""jobs/compare.py: real cells, a table of them, and what it says to wrong words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge.conftest import ROOT, TOY

SMALL = ["--iterations", "0", "--engine", "torch", "--protocol", "candidates", *TOY[2:]]


def compare(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "jobs/compare.py", *args], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )


def test_cells_share_the_first_training_and_make_a_table(runs: Path) -> None:
    args = ["--methods", "BIGRec", "RW", "--seeds", "0", "--scale", "toy", "--runs", str(runs), "--name", "c", *SMALL]
    done = compare(*args)
    folder = runs / "c"
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((folder / "comparison.json").read_text())
    rows = {row["method"]: row for row in made["rows"]}
    assert list(rows) == ["Popular", "BIGRec", "RW"] and rows["RW"]["N"] == 128 and made["failed"] == {}
    for name in ("BIGRec", "RW"):
        lines = [json.loads(line) for line in (folder / f"{name}-seed0" / "metrics.jsonl").read_text().splitlines()]
        record = next(r for r in lines if r["kind"] == "evaluation" and r["split"] == "test")
        for metric in ("HR@5", "NDCG@5", "DivRatio@5", "ORRatio@5"):
            assert rows[name][metric]["value"] == pytest.approx(record[metric])
        assert rows[name]["seconds"] > 1 and rows[name]["memory"] > 10**8 and name in done.stdout
    assert rows["BIGRec"]["HR@5"]["value"] > 0 and rows["Popular"]["HR@5"]["value"] > 0.25  # chance is 5 in 20
    trace = json.loads((folder / "RW-seed0" / "trace.json").read_text())["traceEvents"]
    taken = {e["name"] for e in trace if "taken_from" in e["args"]}
    assert taken == {"00/pretrain"}  # its first SFT has weights of its own
    weights = {e["weight"] for e in pq_rows(folder / "RW-seed0")}
    assert len(weights) > 3 and {e["weight"] for e in pq_rows(folder / "BIGRec-seed0")} == {1.0}
    assert (folder / "comparison.html").exists() and (folder / "comparison.csv").exists()


def pq_rows(folder: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "00" / "sft" / "rows.parquet").to_pylist()
