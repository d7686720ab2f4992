"""The parts of the service: batches, windows, versions, users, bodies."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from rayrec.metrics.div_ratio import div_ratio
from rayrec.metrics.or_ratio import or_ratio
from rayrec.metrics.outcome import Answers
from rayrec.recommend.histories import HISTORIES
from rayrec.serving.bodies import Ask, NewCatalogue, reasons
from rayrec.serving.gauges import Gauges, Window
from rayrec.serving.outcomes import Outcomes
from rayrec.serving.together import Together
from rayrec.serving.users import Users
from rayrec.serving.versions import Versions


def test_what_comes_while_a_batch_is_computed_is_the_next_batch() -> None:
    sizes, release = [], asyncio.Event()

    async def answer(asked: list[int]) -> list[int]:
        sizes.append(len(asked))
        await release.wait()
        return [2 * one for one in asked]

    async def session() -> list[int]:
        together = Together(answer, most=4, lanes=1)
        first = [asyncio.create_task(together.ask(0))]
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(together.ask(one)) for one in range(1, 11)]
        await asyncio.sleep(0.01)
        rest[3].cancel()
        release.set()
        found = await asyncio.gather(*first, *rest, return_exceptions=True)
        assert isinstance(found[4], asyncio.CancelledError)
        again = await together.ask(50)
        return [one for one in found if isinstance(one, int)] + [again]

    assert asyncio.run(session()) == [0, 2, 4, 6, 10, 12, 14, 16, 18, 20, 100]
    assert sizes == [1, 4, 4, 1, 1]


def test_lanes_compute_at_once_and_an_error_is_of_its_batch_alone() -> None:
    busy, most = 0, 0

    async def answer(asked: list[int]) -> list[int]:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.01)
        busy -= 1
        if 3 in asked:
            raise ValueError("three")
        return asked

    async def session() -> list[object]:
        together = Together(answer, most=1, lanes=2)
        return await asyncio.gather(*(together.ask(one) for one in range(6)), return_exceptions=True)

    found = asyncio.run(session())
    assert most == 2 and isinstance(found[3], ValueError)
    assert [one for one in found if isinstance(one, int)] == [0, 1, 2, 4, 5]


def test_windows_have_the_ratios_of_the_metrics() -> None:
    draw = random.Random(0)
    lists = [draw.sample(range(30), draw.randint(1, 6)) for _ in range(50)]
    window = Window(20)
    assert np.isnan(window.div_ratio()) and np.isnan(window.or_ratio())
    for number, one in enumerate(lists, 1):
        window.add([f"t{item}" for item in one])
        last = lists[max(0, number - 20) : number]
        answers = answers_of(last)
        assert len(window) == len(last)
        assert window.div_ratio() == pytest.approx(div_ratio(answers, 6))
        assert window.or_ratio() == pytest.approx(or_ratio(answers, 6))


def answers_of(lists: list[list[int]]) -> Answers:
    """The lists as the metrics read them: places without a title are -1."""
    items_NL = np.full((len(lists), 6), -1)
    for row, one in enumerate(lists):
        items_NL[row, : len(one)] = one
    nothing = np.zeros(len(lists), int)
    return Answers(nothing, nothing, nothing, items_NL, 30)


def test_metrics_are_told_by_policy() -> None:
    gauges = Gauges(window=10)
    gauges.batch(3)
    gauges.requested("/recommend", 200)
    for hit in (True, False, False, True):
        gauges.chosen("one", hit)
    for titles, policy in ((["a", "b", "c", "d"], "one"), (["a", "b", "c", "e"], "one"), (["a"], "two")):
        gauges.answered(policy, 0.03, titles, fallback=policy == "two")
    lines = gauges.text(waiting=4, version=7).decode().splitlines()
    for line in (
        'rayrec_requests_total{path="/recommend",status="200"} 1.0',
        'rayrec_latency_seconds_bucket{le="0.05",policy="one"} 2.0',
        'rayrec_batch_size_bucket{le="4.0"} 1.0',
        'rayrec_fallbacks_total{policy="two"} 1.0',
        "rayrec_waiting 4.0",
        "rayrec_version 7.0",
        'rayrec_div_ratio{policy="one"} 0.625',
        'rayrec_or_ratio{policy="one"} 0.75',
        'rayrec_hit_ratio{policy="one"} 0.5',
        'rayrec_window_lists{policy="one"} 2.0',
    ):
        assert line in lines, line


def test_outcomes_are_of_lists_that_are_still_known() -> None:
    outcomes = Outcomes(3)
    names = [outcomes.shown("p", [f"t{number}", "t"], user) for number, user in enumerate(("a", "b", 1, None))]
    assert len({*names}) == 4 and outcomes.chosen("t0", names[0], None) is None  # the oldest of four
    assert outcomes.chosen("t", None, "a") is None
    assert outcomes.chosen("t2", None, "1") == ("p", True) and outcomes.chosen("t2", names[2], None) is None
    assert outcomes.chosen("x", names[3], None) == ("p", False)
    second = outcomes.shown("q", ["u"], "b")
    assert outcomes.chosen("t", None, "b") == ("q", False) and outcomes.chosen("t", second, None) is None
    assert outcomes.chosen("t1", names[1], None) == ("p", True) and outcomes.chosen("", "", None) is None


def test_versions_are_kept_and_the_last_switch_counts(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    assert versions.served is None
    first = versions.begin("/runs/a", "auto", None)
    file = versions.keep_catalogue(["Heat", "Alien"], [3, 4])
    assert file == versions.keep_catalogue(["Heat", "Alien"], [3, 4]) != versions.keep_catalogue(["Heat"], [3])
    second = versions.add(first, catalogue=file, exclude=("Heat",))
    assert versions.served == (0, 1) and second.before == 1 and second.policy == "/runs/a"
    assert versions.switch(second.number) == (1, 2) == Versions(tmp_path).served
    assert versions.read(2) == second and versions.begin("/runs/other", "chat", None) == second
    assert versions.switch(1) == (2, 1) and versions.read(1) == first
    third = versions.add(first)
    versions.discard(third)
    assert versions.numbers() == [1, 2]
    with pytest.raises(ValueError, match=r"Found no version 3, wanted one of \[1, 2\]"):
        versions.read(3)
    (tmp_path / "current.json").write_text("{")
    with pytest.raises(ValueError, match="Name another --state, or remove that folder"):
        versions.begin("/runs/a", "auto", None)


def test_users_have_their_last_row_and_others_have_none() -> None:
    rows = [{"user": "a", "history": ["Heat"]}, {"user": "b", "history": None, "error": "bad"}]
    rows += [{"user": "a", "history": ["Alien", "Heat"]}]
    users = Users([pa.Table.from_pylist(rows, schema=HISTORIES)])
    assert users.get("a") == ["Alien", "Heat"] and users.get("b") == users.get("c") == [] and len(users) == 1
    assert len(Users([])) == 0


def test_reasons_name_fields_and_no_value() -> None:
    with pytest.raises(ValidationError) as error:
        Ask.model_validate({"history": ["private"] * 1001, "k": "private", "x": "private"})
    said = reasons(error.value.errors())
    assert "history: List should have at most 1000 items" in said and "k: Input should be a valid integer" in said
    assert "private" not in said
    with pytest.raises(ValidationError, match="wanted either `rows` or `file`"):
        NewCatalogue.model_validate({})
