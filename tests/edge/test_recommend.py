"""A run's policy recommends as its own evaluation did."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import rayrec
from rayrec.recommend.output import RECOMMENDATIONS
from rayrec.runs.manifest import read_json
from tests.edge.conftest import ROOT


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


def recommend(policy: Path, *args: str) -> subprocess.Popen:
    command = [sys.executable, "jobs/recommend.py", "--policy", str(policy), "--threads", "1", *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(job: subprocess.Popen) -> str:
    said = job.communicate(timeout=400)[0]
    assert job.returncode == 0, said[-3000:]
    return said


@pytest.mark.slow
def test_a_batch_job_that_is_killed_ends_with_the_same_lists(overlapped: Path, tmp_path: Path) -> None:
    titles = pq.read_table(overlapped / "catalogue.parquet")["title"].to_pylist()
    users = [{"user": f"u{i}", "history": titles[i % 50 : i % 50 + i % 9]} for i in range(1500)]
    users[3] = {"user": "bad", "history": "no list"}
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    policy, given = overlapped / "02" / "prefer", ["--histories", str(tmp_path / "users.jsonl")]
    job = recommend(policy, *given, "--out", str(tmp_path / "killed.parquet"))
    parts, deadline = tmp_path / "killed.parquet.parts", time.monotonic() + 200
    while not list(parts.glob("0*.parquet")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    job.kill()
    job.communicate(timeout=60)
    assert not (tmp_path / "killed.parquet").exists()
    begun = read_json(parts / "key.json")["created"]
    ended(recommend(policy, *given, "--out", str(tmp_path / "killed.parquet")))
    said = ended(recommend(policy, *given, "--out", str(tmp_path / "whole.jsonl")))
    assert "users 1,500, fallbacks 167, errors 1" in said and not parts.exists()

    table = pq.read_table(tmp_path / "killed.parquet")
    assert table.schema == RECOMMENDATIONS and {int(t.timestamp()) for t in table["created"].to_pylist()} == {begun}
    rows, lines = table.to_pylist(), (tmp_path / "whole.jsonl").read_text().splitlines()
    for user, row, line in zip(users, rows, map(json.loads, lines), strict=True):
        assert row["user"] == line["input"]["userId"] == user["user"]
        assert (row["title"], row["logprob"]) == (line["output"]["recommendedItems"], line["output"]["scores"])
        assert row["error"] == line["error"] and row["fallback"] == line["output"]["fallback"]
        assert [titles[item] for item in row["item"]] == row["title"] and row["policy"] == "overlapped/02/prefer"
        if row["error"] is None:
            assert len(set(row["title"])) == 10 and not {*row["title"]} & {*user["history"]}
            assert row["fallback"] == (not user["history"])
    assert rows[3]["error"] == "history is 'no list', wanted a list of titles" and rows[3]["title"] == []
    opened = rayrec.Recommender.open(policy, device="cpu")
    mine = opened.recommend([users[40]["history"]], 10)
    assert mine["title"].to_pylist() == rows[40]["title"]
    assert mine["logprob"].to_pylist() == pytest.approx(rows[40]["logprob"], abs=1e-4)
