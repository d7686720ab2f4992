"""The service over HTTP, in this process: answers, refusals, tokens, limits, changes under load."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from rayrec.serving.bodies import CATALOGUE_BODY
from rayrec.serving.proxy import middlewares
from rayrec.serving.web import ADMIN
from tests.serving.conftest import SECRET, TITLES, TOKEN
from tests.serving.wrong import requests

HISTORY = {"history": TITLES[:2], "k": 3}


def test_a_list_is_answered_with_its_version(talk, policies: Path) -> None:
    async def use(client, service) -> None:
        found = (await client.post("/recommend", json=HISTORY)).json()
        assert [item["rank"] for item in found["items"]] == [1, 2, 3] and found["version"] == 1
        assert all(TITLES[item["item"]] == item["title"] not in TITLES[:2] for item in found["items"])
        assert found["policy"] == str(policies / "one") and len(found["catalogue"]) == 12 and not found["fallback"]
        known = (await client.post("/recommend", json={"user": 7, "k": 3})).json()
        assert known | {"id": found["id"]} == found and known["id"] != found["id"]
        ann = (await client.post("/recommend", json={"user": "ann"})).json()
        assert not ann["fallback"] and TITLES[3] not in [item["title"] for item in ann["items"]]
        nobody = (await client.post("/recommend", json={"user": "bob", "k": 2})).json()
        assert nobody["fallback"] and [item["title"] for item in nobody["items"]] == [TITLES[-1], TITLES[-2]]
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).json()["version"] == 1
        text = (await client.get("/metrics")).text
        assert f'rayrec_fallbacks_total{{policy="{policies / "one"}"}} 1.0' in text
        assert 'rayrec_requests_total{path="/recommend",status="200"} 4.0' in text and "rayrec_or_ratio" in text
        page = (await client.get("/openapi.json")).json()
        assert {*page["paths"]} >= {"/recommend", "/metrics", *ADMIN} and "Answer" in page["components"]["schemas"]

    talk(use)


def test_outcomes_are_counted_once_for_a_list(talk, policies: Path) -> None:
    async def use(client, service) -> None:
        one, two, three = [(await client.post("/recommend", json=HISTORY | {"k": k})).json() for k in (3, 4, 5)]
        await client.post("/recommend", json={"user": "ann", "k": 2})
        await client.post("/recommend", json={"user": "ann", "k": 3})
        mine = (await client.post("/recommend", json={"user": "ann", "k": 4})).json()
        title = one["items"][1]["title"]
        found = await client.post("/outcome", json={"id": one["id"], "title": title})
        assert found.status_code == 200 and found.json() == {"hit": True, "policy": str(policies / "one")}
        again = await client.post("/outcome", json={"id": one["id"], "title": title})
        assert again.status_code == 404 and "has its outcome already" in again.json()["error"]
        missed = await client.post("/outcome", json={"id": two["id"], "title": "Another Film"})
        assert missed.json()["hit"] is False
        of_ann = {"user": "ann", "title": mine["items"][3]["title"]}
        assert (await client.post("/outcome", json=of_ann)).json()["hit"] is True
        assert (await client.post("/outcome", json=of_ann)).status_code == 404
        for wrong in ({"title": title}, {"id": three["id"], "user": "ann", "title": title}, {"id": three["id"]}):
            assert (await client.post("/outcome", json=wrong)).status_code == 422
        text = (await client.get("/metrics")).text
        assert f'rayrec_hit_ratio{{policy="{policies / "one"}"}} {2 / 3}' in text
        assert f'rayrec_outcomes_total{{hit="0",policy="{policies / "one"}"}} 1.0' in text

    talk(use)


def test_lists_can_be_drawn_and_a_seed_repeats_them(talk) -> None:
    async def use(client, service) -> None:
        asked = [(await client.post("/recommend", json=HISTORY)).json() for _ in range(4)]
        assert len({one["seed"] for one in asked}) == 4
        assert len({tuple(item["title"] for item in one["items"]) for one in asked}) > 1
        assert all(0 < item["inclusion"] <= 1 for one in asked for item in one["items"])
        again = (await client.post("/recommend", json=HISTORY | {"seed": asked[0]["seed"]})).json()
        assert again | {"id": asked[0]["id"]} == asked[0]
        best = (await client.post("/recommend", json=HISTORY | {"explore": "none"})).json()
        assert (best["seed"], best["threshold"]) == (None, None)
        wrong = await client.post("/recommend", json=HISTORY | {"explore": "none", "seed": 3})
        assert wrong.status_code == 422 and "seed: this list is not drawn" in wrong.json()["error"]

    talk(use, explore="gumbel")


def test_requests_that_come_together_are_answered_together(talk) -> None:
    async def use(client, service) -> None:
        asked = [{"history": TITLES[one : one + 2], "k": 3} for one in range(12)]
        alone = [(await client.post("/recommend", json=one)).json() for one in asked]
        before = len(service.replicas.batches)
        found = await asyncio.gather(*(client.post("/recommend", json=one) for one in asked))
        assert len(service.replicas.batches) - before <= 3
        for one, other in zip(alone, found, strict=True):
            assert [item["title"] for item in other.json()["items"]] == [item["title"] for item in one["items"]]

    talk(use)


def test_no_wrong_request_is_an_error_of_ours(talk) -> None:
    async def use(client, service) -> None:
        for sent in requests(seed=0, count=250):
            headers = {"content-type": sent.kind}
            found = await client.request(sent.method, sent.path, content=sent.body, headers=headers)
            assert 200 <= found.status_code < 500, (sent.what, found.text)
            assert (found.status_code == 200) == sent.right, (sent.what, found.text)
            assert SECRET not in found.text and "Traceback" not in found.text
            if sent.right:
                assert {item["title"] for item in found.json()["items"]} <= {*TITLES}, sent.what
            assert found.headers["content-type"] == "application/json", sent.what
            assert found.headers["x-content-type-options"] == "nosniff"
        assert (await client.post("/recommend", json=HISTORY)).status_code == 200
        assert 'status="500"' not in (await client.get("/metrics")).text

    talk(use)


def test_refusals_say_what_is_wrong_and_repeat_nothing(talk) -> None:
    async def use(client, service) -> None:
        found = await client.post("/recommend", json={"history": ["private"], "k": 0})
        assert found.status_code == 422 and found.json() == {
            "error": "body.k: Input should be greater than or equal to 1"
        }
        long = {"history": ["é" * 500]}
        assert "makes a prompt of" in (await client.post("/recommend", json=long)).json()["error"]
        found = await client.post("/recommend", content=b"x" * 2_000_000)
        assert found.status_code == 413 and "1048576 bytes" in found.json()["error"]

        async def pieces():
            for _ in range(40):
                yield b"x" * 100_000

        assert (await client.post("/recommend", content=pieces())).status_code == 413

    talk(use)


def test_a_token_is_wanted_where_there_is_one_and_always_for_changes(talk, policies: Path) -> None:
    async def guarded(client, service) -> None:
        del client.headers["authorization"]
        for given in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": "Bearer"},
        ):
            for path in ("/recommend", *ADMIN):
                found = await client.post(path, json=HISTORY, headers=given)
                assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer", path
            assert (await client.get("/metrics", headers=given)).status_code == 401
            assert (await client.get("/health", headers=given)).status_code == 200
        # A body of a stranger is not read.
        assert (await client.post("/catalogue", content=b"x" * (CATALOGUE_BODY + 1))).status_code == 401

    async def free(client, service) -> None:
        assert (await client.post("/recommend", json=HISTORY)).status_code == 200
        for path in ADMIN:
            found = await client.post(
                path, json={"policy": str(policies / "two")}, headers={"authorization": "Bearer x"}
            )
            assert found.status_code == 403 and "--token" in found.json()["error"]

    talk(guarded)
    talk(free, token=None)


def test_who_comes_when_all_is_full_may_come_again(talk) -> None:
    async def use(client, service) -> None:
        found = await asyncio.gather(*(client.post("/recommend", json=HISTORY) for _ in range(40)))
        codes = [one.status_code for one in found]
        assert codes.count(200) == 4 and codes.count(503) == 36
        assert {one.headers["retry-after"] for one in found if one.status_code == 503} == {"1"}
        assert (await client.post("/recommend", json=HISTORY)).status_code == 200 and service.waiting == 0

    talk(use, queue=4)


def test_a_request_is_refused_in_time(talk) -> None:
    async def use(client, service) -> None:
        found = await client.post("/recommend", json=HISTORY)
        assert found.status_code == 503 and found.headers["retry-after"] == "1" and "0.001 s" in found.json()["error"]

    talk(use, timeout=0.001)


def test_changes_lose_no_request_and_no_answer_mixes_versions(talk, policies: Path, tmp_path: Path) -> None:
    news = [f"New {number}" for number in range(30)]
    (tmp_path / "more.csv").write_text("title\n" + "\n".join([*TITLES[:4], *news]))

    async def use(client, service) -> None:
        one, two = str(policies / "one"), str(policies / "two")
        known: dict[int, tuple[str, set[str]]] = {1: (one, {*TITLES})}
        names = {1: (await client.get("/ready")).json()["catalogue"]}
        seen, stop = [], False

        async def load(number: int) -> None:
            while not stop:
                found = await client.post("/recommend", json={"history": TITLES[number : number + 2], "k": 8})
                assert found.status_code == 200, found.text
                seen.append(found.json())
                await asyncio.sleep(0)

        async def change(path: str, body: dict, policy: str, titles: set[str], number: int) -> dict:
            found = await client.post(path, json=body)
            assert found.status_code == 200, found.text
            made = found.json()
            assert made["version"] == number and made["policy"] == policy and made["eligible"] == len(titles)
            known[number], names[number] = (policy, titles), made["catalogue"]
            after = (await client.post("/recommend", json={"history": TITLES[:1]})).json()
            assert after["version"] == number
            await asyncio.sleep(0.1)
            return made

        clients = [asyncio.create_task(load(number)) for number in range(4)]
        rows = [{"title": title, "popularity": 1} for title in news]
        await change("/catalogue", {"rows": rows}, one, {*news}, 2)
        await change("/policy", {"policy": two, "template": "compact"}, two, {*news}, 3)
        named = await client.post("/recommend", json={"history": TITLES[:2], "policy": one})
        assert named.json()["version"] == 2
        await change("/eligible", {"exclude": news[:20]}, two, {*news[20:]}, 4)
        await change("/rollback", {}, two, {*news}, 3)
        await change("/rollback", {"to": 1}, one, {*TITLES}, 1)
        await change("/catalogue", {"file": str(tmp_path / "more.csv")}, one, {*TITLES[:4], *news}, 5)
        stop = True
        await asyncio.gather(*clients)
        for answer in seen:
            policy, titles = known[answer["version"]]
            assert answer["policy"] == policy and answer["catalogue"] == names[answer["version"]]
            assert answer["items"] and {item["title"] for item in answer["items"]} <= titles
        assert {answer["version"] for answer in seen} == {1, 2, 3, 4, 5}
        assert (await client.get("/versions")).json() == {"versions": [1, 2, 3, 4, 5], "version": 5}

    talk(use)


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/catalogue", {"rows": [{"title": "A"}, {"title": "A"}]}, "has a title twice"),
        ("/catalogue", {"rows": [{"title": "A", "popularity": -1}]}, "greater than or equal to 0"),
        ("/catalogue", {"rows": [{"title": "   "}]}, "empty title"),
        ("/catalogue", {"rows": []}, "at least 1 item"),
        ("/catalogue", {"file": "/etc/passwd"}, "not readable"),
        ("/catalogue", {"file": "/nowhere.csv"}, "no such file"),
        ("/policy", {"policy": "/nowhere"}, "no such run or folder"),
        ("/catalogue", {"file": "x" * 4000}, "too long"),
        ("/catalogue", {"file": "~no such account/titles.csv"}, "home directory"),
        ("/policy", {"policy": "x" * 4000}, "too long"),
        ("/policy", {"policy": "~no such account/policy"}, "home directory"),
        ("/policy", {"policy": "/etc"}, "/etc"),
        ("/policy", {"policy": "/x", "template": "other"}, "template"),
        ("/eligible", {"allow": ["Nowhere"]}, "not in the catalogue"),
        ("/eligible", {"allow": []}, "found no eligible title left"),
        ("/rollback", {}, "Version 1 replaced no other"),
        ("/rollback", {"to": 9}, "Found no version 9"),
    ],
)
def test_a_change_that_cannot_be_leaves_what_was(talk, path: str, body: dict, error: str) -> None:
    async def use(client, service) -> None:
        found = await client.post(path, json=body)
        assert found.status_code == 422 and error in found.json()["error"], found.text
        assert (await client.post("/recommend", json=HISTORY)).json()["version"] == 1
        assert service.versions.numbers() == [1]

    talk(use)


def test_a_request_whose_front_died_may_come_again() -> None:
    async def app(scope, receive, send) -> None:
        if scope["path"] == "/there":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    async def session() -> None:
        (one,) = middlewares()
        transport = httpx.ASGITransport(app=one.cls(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            assert (await client.get("/there")).status_code == 204
            found = await client.get("/gone")
            assert (
                found.status_code == 503
                and found.headers["retry-after"] == "1"
                and "Try again" in found.json()["error"]
            )

    asyncio.run(session())


def test_a_title_may_spell_anything(talk) -> None:
    async def use(client, service) -> None:
        titles = ["<s>", "</s>", "<script>alert(1)</script>", '"quoted"', "back\\slash", "🜚", "A\nB", "A"]
        found = await client.post("/catalogue", json={"rows": [{"title": title} for title in titles]})
        assert found.status_code == 200, found.text
        found = await client.post("/recommend", json={"history": titles[:3], "exclude_history": False})
        assert {item["title"] for item in found.json()["items"]} == {*titles}
        assert found.headers["content-type"] == "application/json"

    talk(use)
