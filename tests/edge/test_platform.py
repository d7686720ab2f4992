"""The walk of a platform's engineer: tune, recommend, serve, new titles, another policy, and a watch on all of it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rayrec.data.settings import DataConfig
from rayrec.recommend import histories
from rayrec.runs.manifest import read_json
from tests.edge.conftest import ROOT
from tests.edge.served import Served

K, USERS = 5, 12


def test_from_a_tuned_policy_to_a_watch_on_its_lists(overlapped: Path, tmp_path: Path) -> None:
    data = DataConfig(source=read_json(overlapped / "config.json")["config"]["data"]["source"])
    known = next(histories.from_logs(data, 10)).slice(0, USERS).to_pylist()
    users, titles = [row["user"] for row in known], pq.read_table(overlapped / "catalogue.parquet")["title"].to_pylist()
    (tmp_path / "users.txt").write_text("\n".join(users))
    batch = [sys.executable, "jobs/recommend.py", "--policy", str(overlapped / "01" / "prefer"), "--threads", "1"]
    batch += ["--users", str(tmp_path / "users.txt"), "--top-k", str(K), "--out", str(tmp_path / "nightly.parquet")]
    job = subprocess.Popen(batch, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    served = Served(tmp_path, "--policy", str(overlapped / "01" / "prefer"))
    try:
        said = job.communicate(timeout=200)[0]
        assert job.returncode == 0, said[-3000:]
        nightly = {row["user"]: row for row in pq.read_table(tmp_path / "nightly.parquet").to_pylist()}
        served.until_ready()
        before = {user: served.post("/recommend", {"user": user, "k": K}) for user in users}
        for row in known:  # the run's own users, in the batch and online
            mine = {item["title"]: item["logprob"] for item in before[row["user"]]["items"]}
            wanted = nightly[row["user"]]
            assert mine == pytest.approx(dict(zip(wanted["title"], wanted["logprob"], strict=True)), abs=1e-3)
            assert len(mine) == K and not {*mine} & {*row["history"]}
        chosen = {user: nightly[user]["title"][0] for user in users[:4]}
        hits = [served.post("/outcome", {"user": user, "title": title})["hit"] for user, title in chosen.items()]
        assert hits == [True] * 4

        new = [f"Brand New Film {number} (2031)" for number in range(3)]
        rows = [{"title": title} for title in (*titles, *new)]
        assert served.post("/catalogue", {"rows": rows})["items"] == len(titles) + 3
        fresh = served.post("/recommend", {"user": users[0], "allow": new})
        assert {item["title"] for item in fresh["items"]} == {*new} and not fresh["fallback"]
        promoted = served.post("/policy", {"policy": str(overlapped / "02" / "prefer")})
        assert promoted["policy"] == "overlapped/02/prefer" and promoted["version"] == 3
        after = {user: served.post("/recommend", {"user": user, "k": K, "explore": "gumbel"}) for user in users}
        assert {answer["version"] for answer in after.values()} == {3}
        assert all(0 < item["inclusion"] <= 1 for answer in after.values() for item in answer["items"])
        assert 'rayrec_hit_ratio{policy="overlapped/01/prefer"} 1.0' in served.client.get("/metrics").text
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0, served.log.read_text()[-4000:]
    finally:
        job.kill()
        served.process.kill()
    watched(tmp_path, after, chosen, [*titles, *new])


def watched(folder: Path, answers: dict[str, dict[str, Any]], chosen: dict[str, str], titles: list[str]) -> None:
    """The watch reads the nightly lists and the answers that were kept, and says what passes a limit."""
    with (folder / "online.jsonl").open("w") as file:
        for user, answer in answers.items():
            output = {"recommendedItems": [item["title"] for item in answer["items"]]}
            output |= {name: answer[name] for name in ("policy", "catalogue", "fallback")}
            file.write(json.dumps({"input": {"userId": user}, "output": output, "error": None}) + "\n")
    for name, rows in (
        ("outcomes.csv", [("user", "title"), *chosen.items()]),
        ("titles.csv", [("title",), *((title,) for title in titles)]),
    ):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    line = [sys.executable, "-m", "rayrec.watch", str(folder / "nightly.parquet"), str(folder / "online.jsonl")]
    line += ["--catalogue", str(folder / "titles.csv"), "--outcomes", str(folder / "outcomes.csv"), "--k", str(K)]
    line += ["--out", str(folder / "watch.html"), "--json", str(folder / "watch.json"), "--limits", "coverage>0.99"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 3 and "coverage is" in done.stderr, done.stdout + done.stderr
    found = {one["policy"]: one for one in json.loads((folder / "watch.json").read_text())}
    assert {*found} == {"overlapped/01/prefer", "overlapped/02/prefer"}
    assert found["overlapped/01/prefer"]["HR"]["value"] == 1 and found["overlapped/02/prefer"]["lists"] == USERS
    assert "overlapped/02/prefer" in (folder / "watch.html").read_text()
