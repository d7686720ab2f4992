"""Candidate sets, and the leak that published ones have."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data import load, schema
from rayrec.data.candidates import CANDIDATES, adherence_rows, candidates
from rayrec.data.catalogue import Catalogue
from rayrec.data.dataset import interactions
from rayrec.data.settings import DataConfig
from rayrec.data.touched import Touched
from rayrec.seeds import seed_of

CATALOGUE = Catalogue.from_items([f"Film {i}" for i in range(60)], [[]] * 60)


def example(number: int) -> dict:
    """A user's row: three films of history and a target among forty."""
    titles = np.random.default_rng(number).permutation(40)[:4]
    history, target = [f"Film {i}" for i in titles[:3]], f"Film {titles[3]}"
    return {"example_id": f"e{number}", "user": f"u{number % 50}", "timestamp": number} | {
        "history": history,
        "target": target,
    }


def test_a_list_is_the_target_among_items_never_met() -> None:
    for number in range(200):
        row = example(number)
        met = {"Film 58", "Film 59", *row["history"], row["target"]}
        found = candidates(row, met, CATALOGUE, seed=0)
        assert len(set(found)) == CANDIDATES and set(found) & met == {row["target"]}
        assert found == candidates(row, met, CATALOGUE, seed=0) != candidates(row, met, CATALOGUE, seed=1)


def position_map_accuracy(make: Callable[[dict], list[str]]) -> float:
    """HR@1 of the map item -> most frequent position of it as a target, learnt on one half and tried on the other."""
    rows = [example(number) for number in range(8000)]
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows[:4000]:
        seen[row["target"]][make(row).index(row["target"])] += 1
    hits = 0
    for row in rows[4000:]:
        listed = make(row)
        fits = [i for i, title in enumerate(listed) if title in seen and seen[title].most_common(1)[0][0] == i]
        hits += bool(fits) and listed[fits[0]] == row["target"]
    return hits / 4000


def test_places_tell_nothing_about_titles() -> None:
    """Chance is 1/20; lists that are shuffled by the target, as S-DPO's LastFM rows are, give the answer away."""

    def leaking(row: dict) -> list[str]:
        listed = candidates(row, (), CATALOGUE, seed=0)
        rest = [title for title in listed if title != row["target"]]
        place = seed_of(row["target"]) % CANDIDATES
        return [*rest[:place], row["target"], *rest[place:]]

    fair = position_map_accuracy(lambda row: candidates(row, (), CATALOGUE, seed=0))
    assert fair < 0.05 + 4 * (0.05 * 0.95 / 4000) ** 0.5
    assert position_map_accuracy(leaking) > 0.3


def test_rows_of_one_moment_have_lists_of_their_own() -> None:
    """One moment's train and test rows: who picks what the training row did not list finds nothing by it."""
    hits = 0
    for number in range(2000):
        train, test = (example(number) | {"target": f"Film {50 + i}", "example_id": f"{i}-{number}"} for i in range(2))
        first, second = (candidates(row, (), CATALOGUE, seed=0) for row in (train, test))
        new = [title for title in second if title not in first]
        hits += bool(new) and new[number % len(new)] == test["target"]
    chance = 1 / CANDIDATES  # the catalogue is small: two lists share a good part by chance
    assert hits / 2000 < 2.5 * chance


def test_too_few_items_are_refused() -> None:
    row = example(0)
    outside = [title for title in CATALOGUE.titles if title not in (*row["history"], row["target"])]
    with pytest.raises(ValueError, match=r"Example e0: found 18 items that the user never met, wanted 19"):
        candidates(row, outside[18:], CATALOGUE, 0)
    assert len(candidates(row, outside[19:], CATALOGUE, 0)) == CANDIDATES


def test_touched_is_history_and_targets_of_the_training_rows() -> None:
    rows = [{**example(n), "user": "ann" if n < 2 else "bob", "split": "train"} for n in range(3)]
    table = pa.Table.from_pylist(rows, schema=schema.EXAMPLES)
    found = Touched(table)
    assert found["ann"] == {t for r in rows[:2] for t in (*r["history"], r["target"])}
    assert set(found) == {"ann", "bob"} and "eve" not in found and found.most == max(map(len, found.values()))
    assert found["bob"] == {*rows[2]["history"], rows[2]["target"]}
    log = [{"user": user, "title": title, "timestamp": 0} for user, titles in found.items() for title in [*titles] * 2]
    assert dict(Touched(pa.Table.from_pylist(log, schema=schema.INTERACTIONS))) == dict(found)


@pytest.mark.parametrize("split", ["time", "leave_last_two", "sequences"])
def test_evaluated_rows_list_no_title_that_the_user_met_before_the_history(split: Any) -> None:
    config = DataConfig(protocol="candidates", split=split, history=5)
    data, met = load(config), defaultdict[str, set[str]](set)
    for row in interactions(config)[0].to_pylist():
        met[row["user"]].add(row["title"])
    for row in pa.concat_tables([data.valid, data.test]).to_pylist():
        assert {*row["candidates"]} & met[row["user"]] == {row["target"]}


def test_adherence_rows_list_what_comes_next_and_ask_for_the_first_that_is_liked() -> None:
    rows = [
        {
            "example_id": f"test-{n}",
            "split": "test",
            "user": "ann",
            "timestamp": n,
            "history": [f"Film {n + i}" for i in range(3)],
            "target": f"Film {n + 3}",
            "target_rating": float(rating),
        }
        for n, rating in enumerate([2, 5, 1, 4, 3])
    ]
    test = pa.Table.from_pylist(rows, schema=schema.EXAMPLES)
    made = adherence_rows(test, {"ann": {f"Film {i}" for i in range(8)}}, CATALOGUE, 0, 10).to_pylist()
    assert [(row["example_id"], row["target"], row["target_rating"]) for row in made] == [
        ("adherence-test-0", "Film 4", 5.0),  # liked next: films 4 and 6
        ("adherence-test-1", "Film 4", 5.0),
    ]
    for row, coming in zip(made, ({3, 4, 5, 6, 7}, {4, 5, 6, 7}), strict=True):
        wanted = {f"Film {i}" for i in coming} - set(row["history"])
        assert len(set(row["candidates"])) == CANDIDATES and wanted <= set(row["candidates"])
        assert not set(row["candidates"]) & set(row["history"])
    assert len(adherence_rows(test, {}, CATALOGUE, 0, 1)) == 1 and not len(
        adherence_rows(test.slice(2), {}, CATALOGUE, 0, 9)
    )


def test_a_user_with_one_test_row_adheres_from_the_validation_row_on() -> None:
    settings = DataConfig(protocol="candidates", split="leave_last_two", test_rows=10**9, valid_rows=10**9)
    data = load(settings)
    last = {row["user"]: row for row in data.test.to_pylist()}
    wanted = {
        f"adherence-{row['example_id']}": {row["target"], last[row["user"]]["target"]}
        for row in data.valid.to_pylist()
        if min(row["target_rating"], last[row["user"]]["target_rating"]) >= 4
    }
    assert data.adherence is not None and len(wanted) > 20
    made = {row["example_id"]: row for row in data.adherence.to_pylist()}
    history = {f"adherence-{row['example_id']}": {*row["history"]} for row in data.valid.to_pylist()}
    assert made.keys() == {name for name in wanted if len(wanted[name]) == 2 and not wanted[name] & history[name]}
    assert all(wanted[name] <= set(row["candidates"]) and row["target"] in wanted[name] for name, row in made.items())
