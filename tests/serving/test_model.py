"""A replica: snapshots, switches, and what it refuses to load."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayrec.recommend import Recommender
from rayrec.serving.deploy import begin
from rayrec.serving.model import Model, open_version
from rayrec.serving.settings import ServeConfig
from rayrec.serving.versions import Served, Versions
from tests.serving.conftest import TITLES


def ask(history: list[str], **more: Any) -> dict[str, Any]:
    limits = {"allow": None, "exclude": [], "exclude_history": True, "policy": None}
    return {"history": history, "k": 3, **limits, "explore": "none", "seed": 0} | more


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def titles(answer: dict[str, Any]) -> list[str]:
    assert [item["rank"] for item in answer["items"]] == list(range(1, len(answer["items"]) + 1))
    return [item["title"] for item in answer["items"]]


def test_a_batch_of_all_kinds_has_the_answers_of_each_alone(policies: Path, versions: Versions) -> None:
    snapshot = open_version(versions.read(1), [], "cpu")
    batch = [
        ask(TITLES[:3]),
        ask([], k=2, exclude=TITLES[-1:]),
        ask(TITLES[4:6], k=16, exclude_history=False),
        ask(TITLES[2:9], allow=[*TITLES[:4], "Nowhere"], exclude=["Nobody"]),
        ask(["A title of another catalogue"], k=1),
        ask(TITLES[:1], allow=["Nowhere"]),
        ask(["A", "é" * 500]),
    ]
    found = snapshot.answer(batch)
    opened = Recommender.open(policies / "one", policies / "titles.csv", template="compact", device="cpu")
    for one, answer in zip(batch[:5], found, strict=False):
        allow = one["allow"] and [title for title in one["allow"] if title in TITLES]
        exclude = [title for title in one["exclude"] if title in TITLES]
        alone = opened.recommend(
            [one["history"]], one["k"], exclude_history=one["exclude_history"], allow=allow, exclude=exclude
        )
        assert titles(answer) == alone["title"].to_pylist() and len(titles(answer)) == min(one["k"], alone.num_rows)
        assert answer["fallback"] == (not one["history"])
        if one["history"]:
            logprobs = [item["logprob"] for item in answer["items"]]
            assert logprobs == pytest.approx(alone["logprob"].to_pylist(), abs=1e-4)
    assert [item["logprob"] for item in found[1]["items"]] == [None, None]
    assert titles(found[1]) == [TITLES[-2], TITLES[-3]]
    assert titles(found[3]) == [title for title in titles(found[3]) if title in TITLES[:2]]
    assert found[5]["items"] == []
    assert found[6]["status"] == 422 and "Shorten the title" in found[6]["error"]


def test_drawn_lists_have_what_an_estimate_needs_and_best_ones_do_not(policies: Path, versions: Versions) -> None:
    snapshot = open_version(versions.read(1), [], "cpu")
    drawn = {"explore": "gumbel", "seed": 11}
    batch = [ask(TITLES[:3], **drawn), ask(TITLES[:3]), ask(TITLES[:3], **drawn, k=2), ask([], **drawn)]
    found = snapshot.answer(batch)
    opened = Recommender.open(policies / "one", policies / "titles.csv", template="compact", device="cpu")
    for answer, one in zip(found[::2], batch[::2], strict=True):
        alone = opened.recommend([one["history"]], one["k"], explore="gumbel", seeds=[11])
        assert titles(answer) == alone["title"].to_pylist() and answer["seed"] == 11
        assert [item["inclusion"] for item in answer["items"]] == pytest.approx(
            alone["inclusion"].to_pylist(), rel=1e-3
        )
        assert answer["threshold"] == pytest.approx(alone["threshold"][0].as_py(), abs=1e-3)
    assert titles(found[2]) == titles(found[0])[:2] and found[2]["threshold"] > found[0]["threshold"]
    for answer in (found[1], found[3]):
        assert (answer["seed"], answer["threshold"]) == (None, None)
        assert {item["inclusion"] for item in answer["items"]} == {None}
    assert found[3]["fallback"]


def test_other_titles_and_masks_load_no_policy_again(versions: Versions) -> None:
    first = versions.read(1)
    old = open_version(first, [], "cpu")
    file = versions.keep_catalogue([*TITLES[:5], "A New Title"], [5, 4, 3, 2, 1, 0])
    new = open_version(versions.add(first, catalogue=file), [old], "cpu")
    assert new.recommender.model is old.recommender.model and new.recommender is not old.recommender
    masked = open_version(versions.add(first, catalogue=file, exclude=tuple(TITLES[:4])), [old, new], "cpu")
    assert masked.recommender is new.recommender and int(masked.allowed_I.sum()) == 2
    (answer,) = masked.answer([ask(["Elsewhere"], k=10)])
    assert {*titles(answer)} == {TITLES[4], "A New Title"}
    assert len({one.about["version"] for one in (old, new, masked)}) == 3
    assert old.about["catalogue"] != new.about["catalogue"] == masked.about["catalogue"]
    with pytest.raises(ValueError, match="1 titles to allow or exclude are not in the catalogue"):
        open_version(versions.add(first, catalogue=file, exclude=("Nowhere",)), [old, new], "cpu")


def test_a_switch_is_between_batches_and_what_was_said_later_counts(policies: Path, versions: Versions) -> None:
    async def session() -> None:
        model, question = Model(str(versions.folder), "cpu", 1), [ask(TITLES[:2])]
        (old,) = await model.answer(Served(0, 1), question)
        two = versions.add(versions.read(1), policy=str(policies / "two"))
        assert (await model.prepare(two.number))["eligible"] == len(TITLES)
        assert (await model.answer(Served(0, 1), question)) == [old] and (await model.state())["version"] == 1
        served = versions.switch(2)
        assert (await model.state())["version"] == 2  # before a batch says so
        (new,) = await model.answer(served, question)
        assert new["version"] == 2 and new["policy"] == str(policies / "two") and new["items"] != old["items"]
        # A batch that was sent before the switch and comes after it.
        assert (await model.answer(Served(0, 1), question)) == [old] and (await model.state())["version"] == 2
        by_name = await model.answer(Served(1, 2), [ask(TITLES[:2], policy=str(policies / n)) for n in ("one", "two")])
        assert by_name == [old, new]
        (wrong,) = await model.answer(Served(1, 2), [ask([], policy="nowhere")])
        assert wrong["status"] == 404 and str(policies / "one") in wrong["error"]
        # A replica that begins now holds the same two, and one that missed the preparation loads at the switch.
        later = Model(str(versions.folder), "cpu", 1)
        assert sorted(later.held) == [1, 2] and later.served == (1, 2)
        assert await later.answer(Served(1, 2), question) == [new]
        versions.add(versions.read(2), exclude=(TITLES[0],))
        assert (await later.answer(versions.switch(3), question))[0]["version"] == 3
        assert sorted(later.held) == [2, 3]
        # A replica that answered nothing since the last switch keeps what is served while another version is loaded.
        assert (await model.prepare(1))["version"] == 1 and sorted(model.held) == [1, 3] and model.served.number == 3
        assert (await later.answer(versions.switch(1), question)) == [old] and sorted(later.held) == [1]

    run(session())


def test_a_policy_that_is_broken_is_not_served(policies: Path, versions: Versions, tmp_path: Path) -> None:
    shutil.copytree(policies / "two", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    name = next(name for name in weights if "embed" in name)
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    for folder in ("cut", "odd"):
        shutil.copytree(policies / "two", tmp_path / folder)
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    (tmp_path / "odd" / "tokenizer.json").write_text("{}")

    async def session() -> None:
        model = Model(str(versions.folder), "cpu", 1)
        for policy, why in (
            (tmp_path / "broken", "holds NaN or infinity. Take weights of finite numbers"),
            (tmp_path / "no", "no such run or folder"),
            (tmp_path / "cut", "damaged, cut short"),
            (tmp_path / "odd", "wanted a Hugging Face folder with config.json, tokenizer.json"),
        ):
            made = versions.add(versions.read(1), policy=str(policy))
            found = await model.prepare(made.number)
            assert why in found["error"] and found["status"] == 422
        assert (await model.answer(Served(0, 1), [ask(TITLES[:1])]))[0]["version"] == 1

    run(session())


def test_a_policy_that_was_written_again_is_loaded_again(policies: Path, versions: Versions, tmp_path: Path) -> None:
    shutil.copytree(policies / "one", tmp_path / "policy")
    version = versions.add(versions.read(1), policy=str(tmp_path / "policy"))
    old = open_version(version, [], "cpu")
    shutil.copyfile(policies / "two" / "model.safetensors", tmp_path / "policy" / "model.safetensors")
    new = open_version(version, [old], "cpu")
    assert new.recommender.model is not old.recommender.model


def test_a_replica_serves_also_where_the_version_before_is_gone(
    policies: Path, versions: Versions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(policies / "one", tmp_path / "gone")
    versions.add(versions.read(1), policy=str(tmp_path / "gone"))
    versions.add(versions.read(2), policy=str(policies / "two"))
    served = versions.switch(3)
    shutil.rmtree(tmp_path / "gone")
    model = Model(str(versions.folder), "cpu", 1)
    assert sorted(model.held) == [3] and "Version 2, which was served before, cannot be opened" in caplog.text
    assert run(model.answer(served, [ask(TITLES[:1])]))[0]["version"] == 3


def test_a_version_keeps_its_titles_where_the_file_changes(policies: Path, tmp_path: Path) -> None:
    file, state = shutil.copy(policies / "titles.csv", tmp_path), tmp_path / "state"
    config = ServeConfig(policy=str(policies / "one"), catalogue=str(file), template="compact", state=str(state))
    begin(config, str(state))
    Path(file).write_text("title\nAnother\n")
    opened = open_version(Versions(state).read(1), [], "cpu").recommender.catalogue
    assert opened.titles == TITLES and opened.popularity.tolist() == [*range(len(TITLES))]
