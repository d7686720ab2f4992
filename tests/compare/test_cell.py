"""jobs/compare.py with a real cell, and a table of it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest


def test_a_cell_is_a_run_and_makes_a_row_of_the_table(compared: Path, finished: Path) -> None:
    made = json.loads((compared / "comparison.json").read_text())
    rows = {row["method"]: row for row in made["rows"]}
    assert list(rows) == ["Popular", "SPRec"] and rows["SPRec"]["N"] == 24 and made["failed"] == {}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    ends = [r for r in lines if r["kind"] == "evaluation" and (r["split"], r["decode"]) == ("test", "score")]
    for metric in ("HR@5", "NDCG@5", "DivRatio@5", "ORRatio@5"):
        assert rows["SPRec"][metric]["value"] == pytest.approx(ends[-1][metric])
    assert rows["SPRec"]["seconds"] > 1 and rows["SPRec"]["memory"] > 10**8
    assert rows["SPRec"]["HR@5"]["value"] > 0 and rows["Popular"]["HR@5"]["value"] > 0.25  # chance is 5 in 20
    assert "p_holm" in rows["SPRec"]["ΔHR@5"]
    assert "SPRec" in compared.with_suffix(".txt").read_text()
    weights = pq.read_table(finished / "00" / "sft" / "rows.parquet")["weight"]  # of --reweight
    assert len({*weights.to_pylist()}) > 3
    assert (compared / "comparison.html").exists() and (compared / "comparison.csv").exists()
