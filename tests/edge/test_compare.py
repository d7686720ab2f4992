"""jobs/compare.py: real cells, a table of them, and what it says to wrong words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge.conftest import ROOT, TOY

SMALL = ["--iterations", "0", "--engine", "torch", "--protocol", "candidates", "--k", "5", *TOY[2:]]


def compare(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "jobs/compare.py", *args], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )


def test_a_cell_is_a_run_and_makes_a_row_of_the_table(runs: Path) -> None:
    args = ["--methods", "RW", "--against", "Popular", "--seeds", "0", "--scale", "toy", "--runs", str(runs)]
    done = compare(*args, "--name", "c", *SMALL)
    folder = runs / "c"
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((folder / "comparison.json").read_text())
    rows = {row["method"]: row for row in made["rows"]}
    assert list(rows) == ["Popular", "RW"] and rows["RW"]["N"] == 128 and made["failed"] == {}
    lines = [json.loads(line) for line in (folder / "RW-seed0" / "metrics.jsonl").read_text().splitlines()]
    record = next(r for r in lines if r["kind"] == "evaluation" and r["split"] == "test")
    for metric in ("HR@5", "NDCG@5", "DivRatio@5", "ORRatio@5"):
        assert rows["RW"][metric]["value"] == pytest.approx(record[metric])
    assert rows["RW"]["seconds"] > 1 and rows["RW"]["memory"] > 10**8 and "RW" in done.stdout
    assert rows["RW"]["HR@5"]["value"] > 0 and rows["Popular"]["HR@5"]["value"] > 0.25  # chance is 5 in 20
    assert "p_holm" in rows["RW"]["ΔHR@5"]
    assert len({e["weight"] for e in pq_rows(folder / "RW-seed0")}) > 3
    assert (folder / "comparison.html").exists() and (folder / "comparison.csv").exists()


def pq_rows(folder: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "00" / "sft" / "rows.parquet").to_pylist()
