"""The benches run, and the contenders do the same work."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def bench(tmp_path: Path, *args: str) -> list[dict]:
    command = [
        sys.executable,
        "jobs/bench.py",
        *args,
        "--quick",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / "out.json").read_text())


def test_preference_steps_end_with_the_loss_of_trl(tmp_path: Path) -> None:
    records = bench(tmp_path, "preference", "--against", "trl")
    assert [record["against"] for record in records] == ["trl"]
    for record in records:
        assert record["failed"] is None and record["ratio"] > 0 and record["memory"] < 1
        assert record["ours_loss"] == pytest.approx(record["theirs_loss"], abs=1e-4)
        assert record["ours_loss"] < math.log(2) - 1e-6  # the second step has learnt from the first
        assert record["ours_tokens_per_user"] < record["theirs_tokens_per_user"]


def test_constrained_beams_are_titles(tmp_path: Path) -> None:
    (record,) = bench(tmp_path, "decode")
    assert record["failed"] is None and record["against"] == "hf" and record["width"] == 4
    assert record["ours_invalid"] == 0 < record["theirs_invalid"] and record["ratio"] > 0


def test_the_nearest_items_are_those_of_faiss_and_numpy(tmp_path: Path) -> None:
    records = bench(tmp_path, "ground")
    assert [record["against"] for record in records] == ["faiss", "numpy"]
    for record in records:
        assert record["failed"] is None and record["ours_lists"] == record["theirs_lists"] > 0


def test_the_pool_answers_as_many_as_bare_calls(tmp_path: Path) -> None:
    (record,) = bench(tmp_path, "overhead")
    assert record["failed"] is None and record["against"] == "ray"
    assert record["ours_answers"] == record["theirs_answers"] == 6400
