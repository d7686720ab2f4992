"""A tuned policy as a service, in real processes: asked, changed, attacked, and hit under load."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayrec
from tests.edge.conftest import alive, descendants, gone, title
from tests.edge.served import Served
from tests.serving.wrong import requests

SECRET = "The Secret Diary"
#: The most titles of a list.
K = 5


class Load:
    """Threads that ask all the time, each with its own history; the answers and the other statuses."""

    def __init__(self, served: Served, histories: list[list[str]]):
        self.served, self.stop = served, threading.Event()
        self.answers, self.others = list[tuple[int, dict[str, Any]]](), list[tuple[int, dict[str, str]]]()
        self.threads = [
            threading.Thread(target=self._ask, args=(number, history)) for number, history in enumerate(histories)
        ]

    def _ask(self, number: int, history: list[str]) -> None:
        own = self.served.client
        with httpx.Client(base_url=own.base_url, headers=own.headers, timeout=60) as client:
            while not self.stop.is_set():
                found = client.post("/recommend", json={"history": history, "k": K})
                if found.status_code == 200:
                    self.answers.append((number, found.json()))
                else:
                    self.others.append((found.status_code, dict(found.headers)))
                    time.sleep(0.05)

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline and all(thread.is_alive() for thread in self.threads)
            time.sleep(0.02)

    def more(self, count: int = 20) -> None:
        """Wait for so many answers that were not there when this was called."""
        wanted = len(self.answers) + count
        self.until(lambda: len(self.answers) >= wanted)


@contextmanager
def load(served: Served, histories: list[list[str]]) -> Iterator[Load]:
    made = Load(served, histories)
    for thread in made.threads:
        thread.start()
    try:
        yield made
    finally:
        made.stop.set()
        for thread in made.threads:
            thread.join(60)


def test_a_policy_is_served_changed_and_survives(overlapped: Path, tmp_path: Path) -> None:
    titles = pq.read_table(overlapped / "catalogue.parquet")["title"].to_pylist()
    histories = pq.read_table(overlapped / "examples" / "test.parquet").slice(0, 4)["history"].to_pylist()
    users = [{"user": "known", "history": histories[0]}, {"user": "other", "history": [SECRET]}]
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    given = ["--policy", str(overlapped / "01" / "prefer"), "--histories", str(tmp_path / "users.jsonl")]
    served = Served(tmp_path, *given, "--generators", "2", "--state", str(tmp_path / "state"))
    try:
        first = served.until_ready()
        assert first["policy"] == "overlapped/01/prefer" and first["version"] == 1
        known, same = (
            served.post("/recommend", {"k": K, **who}) for who in ({"user": "known"}, {"history": histories[0]})
        )
        assert known | {"id": same["id"]} == same
        assert served.post("/outcome", {"user": "known", "title": known["items"][0]["title"]})["hit"]
        assert served.post("/recommend", {"user": "nobody"})["fallback"]

        news = [*titles[:40], *(f"New Film {number} (2030)" for number in range(40))]
        phases = {1: ("01", titles), 2: ("01", news), 3: ("02", news)}
        with load(served, histories) as asked:
            asked.more()
            rows = [{"title": title} for title in news]
            assert served.post("/catalogue", {"rows": rows})["version"] == 2
            asked.more()
            made = served.post("/policy", {"policy": str(overlapped / "02" / "prefer")})
            assert made["version"] == 3 and made["policy"] == "overlapped/02/prefer" and made["items"] == len(news)
            asked.more()
            assert served.post("/rollback", {})["version"] == 2
            asked.more()
            assert served.post("/rollback", {"to": 3})["version"] == 3
            asked.more()
        assert asked.others == [] and {answer["version"] for _, answer in asked.answers} == {1, 2, 3}
        check(asked.answers, phases, overlapped, histories, tmp_path)

        metrics = served.client.get("/metrics").text
        assert 'rayrec_div_ratio{policy="overlapped/02/prefer"}' in metrics
        assert 'rayrec_or_ratio{policy="overlapped/01/prefer"}' in metrics
        assert 'rayrec_requests_total{path="/recommend",status="200"}' in metrics and "rayrec_version 3.0" in metrics
        killed_under_load(served, histories, phases, overlapped, tmp_path)
        attacked(served, news)
        started = descendants(served.process.pid)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0, served.log.read_text()[-4000:]
        assert gone(started), [title(pid) for pid in alive(started)]
        assert "Traceback" not in served.log.read_text()
    finally:
        served.process.kill()


def check(
    answers: list[tuple[int, dict[str, Any]]],
    known: dict[int, tuple[str, list[str]]],
    run: Path,
    histories: list[list[str]],
    folder: Path,
) -> None:
    """Every answer is the list that the policy and the catalogue of its version give."""
    expected = {}
    for version, (phase, titles) in known.items():
        file = folder / f"titles-{version}.parquet"
        pq.write_table(pa.table({"title": titles}), file)
        opened = rayrec.Recommender.open(run / phase / "prefer", file, device="cpu")
        rows = opened.recommend(histories, K).to_pylist()
        for number in range(len(histories)):
            expected[version, number] = {row["title"]: row["logprob"] for row in rows if row["row"] == number}
        for _, answer in answers:
            if answer["version"] == version:
                assert (answer["policy"], answer["catalogue"]) == (f"overlapped/{phase}/prefer", opened.version)
    for number, answer in answers:
        found = {item["title"]: item["logprob"] for item in answer["items"]}
        assert found == pytest.approx(expected[answer["version"], number], abs=1e-3)


def killed_under_load(
    served: Served, histories: list[list[str]], known: dict[int, tuple[str, list[str]]], run: Path, folder: Path
) -> None:
    """Answers go on, right ones or 503, and both replicas are back in time."""
    before = served.replicas()
    assert len(before) == 2
    with load(served, histories) as asked:
        asked.more()
        os.kill(min(before), signal.SIGKILL)
        killed = time.monotonic()
        asked.more()
        asked.until(lambda: len(served.replicas() - {min(before)}) == 2)
        asked.more(100)
        assert time.monotonic() - killed < 30
        os.kill(max(before), signal.SIGKILL)  # the one that began anew goes on alone
        asked.more()
        (front,) = served.replicas("Front")
        os.kill(front, signal.SIGKILL)
        asked.until(lambda: served.replicas("Front") not in (set(), {front}))
        asked.more()
    assert asked.others
    assert all(status == 503 and headers.get("retry-after") for status, headers in asked.others), asked.others
    assert {answer["version"] for _, answer in asked.answers} == {3}
    check(asked.answers, known, run, histories, folder)


def attacked(served: Served, titles: list[str]) -> None:
    """No wrong request is an error of the service, and none shows what another user chose."""
    for sent in requests(seed=int(time.time()), count=200):
        kind = {"content-type": sent.kind}
        found = served.client.request(sent.method, sent.path, content=sent.body, headers=kind)
        assert found.status_code < 500, (sent.what, found.text)
        assert (found.status_code == 200) == sent.right, (sent.what, found.text)
        assert SECRET not in found.text
        if sent.right:
            assert {item["title"] for item in found.json()["items"]} <= {*titles}
    for path in ("/catalogue", "/policy", "/rollback"):
        found = served.client.post(path, json={}, headers={"Authorization": "Bearer wrong"})
        assert found.status_code == 401
