"""A run's policy recommends as its own evaluation did."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import rayrec


def test_lists_are_those_of_the_runs_beams(overlapped: Path) -> None:
    opened = rayrec.Recommender.open(overlapped / "02" / "prefer", device="cpu")
    assert opened.policy == "overlapped/02/prefer"
    test = pq.read_table(overlapped / "examples" / "test.parquet").slice(0, 40)
    lists = opened.recommend(test["history"].to_pylist(), 10, exclude_history=False)
    made = pq.read_table(overlapped / "02" / "evaluate" / "predictions.parquet")
    made = made.filter(pc.field("decode") == "beams")
    known = dict(zip(made["example_id"].to_pylist(), made.to_pylist(), strict=True))
    for row, example in enumerate(test["example_id"].to_pylist()):
        mine = lists.filter(pc.field("row") == row)
        assert mine["title"].to_pylist() == known[example]["titles"][:10]
        assert mine["logprob"].to_pylist() == pytest.approx(known[example]["logprobs"][:10], abs=1e-4)
    best = rayrec.Recommender.open(overlapped, device="cpu")
    assert best.policy in {f"overlapped/{name}" for name in ("00/sft", "01/prefer", "02/prefer")}
    assert best.version == opened.version
