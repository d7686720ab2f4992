"""The same command with more iterations and other list lengths goes on from what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.edge.conftest import Command, read_trace

#: One thread everywhere: the last evaluation has all threads, and would round in another way once it is not the last.
SMALL = ("--engine", "torch", "--threads", "1", "--decode", "greedy", "beams", "--keep", "1", "--valid-rows", "32")


@pytest.mark.slow
def test_a_run_is_extended(runs: Path) -> None:
    Command(runs, "extended", *SMALL, "--iterations", "1", "--top-k", "1", "3").wait()
    before = json.loads((runs / "extended" / "config.json").read_text())
    folder = Command(runs, "extended", *SMALL, "--iterations", "2", "--top-k", "1", "5", "10").wait()
    whole = Command(runs, "whole", *SMALL, "--iterations", "2", "--top-k", "1", "5", "10").wait()
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for phase in ("00/evaluate", "01/evaluate", "02/evaluate", "00/baseline"):
        assert pq.read_table(folder / phase / "predictions.parquet") == pq.read_table(
            whole / phase / "predictions.parquet"
        )
    after = json.loads((folder / "config.json").read_text())
    assert (after["config"]["train"]["iterations"], after["config"]["evaluate"]["top_k"]) == (2, [1, 5, 10])
    assert after["result_hash"] == before["result_hash"] and after["begun"] == before["begun"]
    begun = before["begun"]
    assert (
        "--iterations 1" in begun["command"] and begun["device"].startswith("cpu") and begun["host"] and begun["date"]
    )
    # Nothing of the first attempt was trained or asked again, though weights were removed.
    trace = read_trace(folder)
    assert "--iterations 2" in trace["attempts"][1]["command"]
    second = trace["attempts"][1]["start"] * 1e6
    again = {e["name"] for e in trace["traceEvents"] if e["cat"] == "phase" and e["ts"] > second}
    trained = {name for name in again if name.endswith(("pretrain", "sft", "prefer", "negatives"))}
    assert trained == {"02/sft", "02/prefer", "02/negatives"}
    asked = {e["name"].split("/")[0] for e in trace["traceEvents"] if e["cat"] == "part" and e["ts"] > second}
    assert asked == {"02"}

    log = runs / "extended.log"
    told = Command(runs, "extended", *SMALL, "--iterations", "1", "--top-k", "1", "5", "10")
    assert told.process.wait(120) == 1
    assert "has finished phases of iteration 2. Take --iterations 2 or more" in log.read_text().splitlines()[-1]
