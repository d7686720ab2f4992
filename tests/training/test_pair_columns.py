"""Utilities from what a user came to next, and the oracle's doubt in a pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayrec.data import preferences, schema
from rayrec.data.ahead import Ahead, retarget
from rayrec.data.candidates import CANDIDATES, candidates
from rayrec.data.catalogue import Catalogue
from rayrec.data.touched import Touched
from rayrec.data.windows import cut
from rayrec.driver.checks import resolve
from rayrec.generation.lane import GenerateLane
from rayrec.grounding import TitleEmbedder, fold
from rayrec.lanes import Policy, Shared
from rayrec.methods import parse
from rayrec.models import sequential
from rayrec.runs.manifest import read_json
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from rayrec.training import pair_columns
from rayrec.training.board import Phase
from rayrec.training.lane import TrainLane

TITLES = [f"Film {i}" for i in range(30)]
#: What fills the lists of candidates.
NEVER_MET = [f"Other {i}" for i in range(30)]


def interactions() -> pa.Table:
    """Two users who each meet 25 films, rated 1 to 5; the second one starts later."""
    rows = [
        {"user": user, "title": TITLES[(5 * u + n) % 30], "rating": float(n % 5 + 1), "timestamp": 100 * n + u}
        for u, user in enumerate(("ann", "bob"))
        for n in range(25)
    ]
    return pa.Table.from_pylist(rows, schema=schema.INTERACTIONS)


@pytest.fixture(scope="module")
def train() -> pa.Table:
    return numbered(cut(interactions(), 10).splits["train"])


def numbered(rows: pa.Table) -> pa.Table:
    return rows.append_column("number", pa.array(range(len(rows))))


def negatives(train: pa.Table, *texts: list[str]) -> pa.Table:
    rows = [
        {"example_id": e, "policy": "p", "k": k, "sampler": "random", "text": text, "raw": None, "logprob": None}
        for e, one in zip(train["example_id"].to_pylist(), texts, strict=False)
        for k, text in enumerate(one)
    ]
    return pa.Table.from_pylist(rows, schema=schema.NEGATIVES)


def test_ahead_is_what_the_user_came_to_next_in_training(train: pa.Table) -> None:
    known = Ahead(train).places(train)
    last = len(train) // 2  # windows of each user
    for row, found in zip(train.to_pylist(), known, strict=True):
        u = ("ann", "bob").index(row["user"])
        n = row["timestamp"] // 100
        expected = {
            f"Film {(5 * u + m) % 30}".casefold(): (float(m % 5 + 1), m - n + 1)
            for m in range(n, min(n + 10, 10 + last))
        }
        assert {title.casefold(): place for title, place in found.items()} == expected


def test_utilities_are_rating_over_root_of_distance(train: pa.Table) -> None:
    first = train.slice(0, 1).to_pylist()[0]
    later = next(r for r in train.to_pylist() if r["user"] == first["user"] and r["timestamp"] > first["timestamp"])
    pairs = preferences.pair_up(train, negatives(train, [later["target"], "Never met"]))
    assert len(pairs) == 1  # the others have no rejected answer
    scored = pair_columns.with_utilities(pairs, Ahead(train))
    wanted = [first["target_rating"], later["target_rating"] / math.sqrt(2), 3 / math.sqrt(11)]
    assert scored["scores"].to_pylist()[0] == pytest.approx(wanted)
    assert pair_columns.ordered(scored)[1] == sum(score >= wanted[0] for score in wanted[1:]) > 0
    rows = preferences.arrange(scored, 4, 1, 0, "t")
    assert rows.schema == schema.PREFERENCES and rows["scores"].to_pylist() == scored["scores"].to_pylist() * 4


def test_columns_by_their_formulas() -> None:
    assert pair_columns.utility(torch.tensor(3.0), torch.tensor(11.0)).item() == pytest.approx(0.9045, abs=5e-5)
    smoothing_BK = pair_columns.oracle_smoothing(torch.tensor([1.0]), torch.tensor([[0.0, 9.0]]))
    assert smoothing_BK[0, 0].item() == pytest.approx(1 / (1 + math.e)) and 0.49 < smoothing_BK[0, 1] < 0.5


def test_neighbours_go_round_the_real_rows_of_a_batch(train: pa.Table) -> None:
    pairs = preferences.pair_up(train, negatives(train, *[["x"]] * 5))
    rows = preferences.with_neighbours(preferences.arrange(pairs, 4, 1, 0, "t")).to_pylist()
    chosen = [row["chosen"] for row in rows]
    assert [row["neighbour"] for row in rows] == [*chosen[1:4], chosen[0], None, None, None, None]


def test_doubts_are_the_oracles_and_strange_text_is_its_nearest_title(train: pa.Table, tmp_path: Path) -> None:
    catalogue = Catalogue.from_items(TITLES, [[]] * 30).with_training(np.ones(30), [])
    sequential.fit_sasrec(train, train, catalogue, 0, str(tmp_path))
    wrote = negatives(train, ["Film 7", "film 7 "], ["Film 3"], [""])
    rows = pair_columns.with_doubts(preferences.pair_up(train, wrote), tmp_path, catalogue, TitleEmbedder(TITLES))
    model, doubts = sequential.load(tmp_path), rows["smoothing"].to_pylist()
    for row, doubt in zip(train.slice(0, 2).to_pylist(), doubts, strict=False):
        score_I = sequential.scores(model, [[catalogue.index[t] for t in row["history"]]])[0]
        rejected = 7 if row["example_id"] == train["example_id"][0].as_py() else 3
        wanted = torch.sigmoid(score_I[rejected] - score_I[catalogue.index[row["target"]]]).item()
        assert doubt == pytest.approx([min(wanted, 0.5)] * len(doubt), rel=1e-5)
    assert len(doubts[0]) == 2 and doubts[2] == [0.0]


def test_targets_are_the_best_of_what_came_next(train: pa.Table) -> None:
    """RecPO section 3 by brute force, for ann: film n is rated n % 5 + 1."""
    ahead = Ahead(train)
    best, nearest = (retarget(train, ahead, how, 4) for how in ("utility", "nearest"))
    later = ahead.titles(train)
    last = 10 + len(train) // 2
    for row, near, titles in zip(best.to_pylist(), nearest.to_pylist(), later, strict=True):
        u, n = ("ann", "bob").index(row["user"]), row["timestamp"] // 100
        coming = list(range(n, min(n + 10, last)))
        assert titles == [f"Film {(5 * u + m) % 30}" for m in coming]
        m = max(coming, key=lambda m: ((m % 5 + 1) / (m - n + 1) ** 0.5, m))
        assert (row["target"], row["target_rating"]) == (f"Film {(5 * u + m) % 30}", m % 5 + 1)
        m = next((m for m in coming if m % 5 + 1 >= 4), n)
        assert (near["target"], near["target_rating"]) == (f"Film {(5 * u + m) % 30}", m % 5 + 1)
    assert best["history"].equals(train["history"]) and best["target"] != train["target"]


def test_of_equal_utilities_the_later_is_the_target() -> None:
    """As RecPO's release: 2/√1 = 4/√4, and the row whose target is rated 4 is kept."""
    stars = {10: 2.0, 13: 4.0}
    rows = [{"user": "u", "title": f"Film {n}", "rating": stars.get(n, 1.0), "timestamp": n} for n in range(30)]
    train = numbered(cut(pa.Table.from_pylist(rows, schema=schema.INTERACTIONS), 10).splits["train"])
    row = retarget(train, Ahead(train), "utility", 4).to_pylist()[0]
    assert (row["target"], row["target_rating"]) == ("Film 13", 4.0)
    assert Ahead(train).places(train, best=True)[0][fold("Film 13")] == (4.0, 4)


def test_a_title_that_comes_again_has_the_place_for_which_it_was_chosen() -> None:
    met = [f"Film {n}" for n in range(40)]
    met[14] = met[12]
    stars = {12: 1.0, 14: 5.0}
    rows = [{"user": "u", "title": t, "rating": stars.get(n, 1.5), "timestamp": n} for n, t in enumerate(met)]
    train = numbered(cut(pa.Table.from_pylist(rows, schema=schema.INTERACTIONS), 10).splits["train"])
    ahead = Ahead(train)
    best = retarget(train, ahead, "utility", 4)
    row, title = best.slice(2, 1).to_pylist()[0], fold("Film 12")
    assert (train["target_rating"][2].as_py(), row["target_rating"]) == (1.0, 5.0)
    first, chosen = (ahead.places(train, best=flag)[row["number"]][title] for flag in (False, True))
    assert (first, chosen) == ((1.0, 1), (5.0, 3))


def test_candidates_of_a_training_row_may_list_what_came_next() -> None:
    catalogue = Catalogue.from_items([f"Film {i}" for i in range(60)], [[]] * 60)
    row = {"example_id": "e", "user": "ann", "timestamp": 3, "history": ["Film 0", "Film 1"], "target": "Film 5"}
    met = {f"Film {i}" for i in range(12)}
    later = ["Film 4", "Film 5", "Film 6", "Film 1"]
    found = candidates(row, met, catalogue, 0, also=later)
    assert len(set(found)) == CANDIDATES and {"Film 4", "Film 5", "Film 6"} == set(found) & met
    places = set()
    for time in range(40):
        listed = candidates({**row, "timestamp": time}, met, catalogue, 0, also=later)
        places.add((listed.index("Film 4"), listed.index("Film 5")))
    assert len(places) > 25  # neither stands in a place of its own


class Quiet:
    """No progress is shown."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def lane_inputs(tmp_path: Path, train: pa.Table, *args: str) -> tuple[Shared, Policy]:
    """What a lane of a run on ``train`` knows, and a policy."""
    config, storage = resolve(parse("", list(args))), Storage(str(tmp_path))
    data: Any = SimpleNamespace(train=train, catalogue=Catalogue.from_items([*TITLES, *NEVER_MET], [[]] * 60))
    run = Run(storage, storage.root / "mine", config, {"data": ""})
    return Shared(config, data, run, None, 1, 1, lambda *args: None, Quiet()), Policy("00/sft", tmp_path)


def test_margins_of_recpo_differ_among_the_negatives_of_a_prompt_without_candidates(
    train: pa.Table, tmp_path: Path
) -> None:
    """One of the user's own later films keeps its φ, all others have that of s = 3 and d = 11 (RecPO)."""
    shared, policy = lane_inputs(tmp_path, train, "--method", "RecPO", "--num-negatives", str(CANDIDATES - 1))
    ahead = Ahead(train)
    rows, later = retarget(train, ahead, "utility", 4), ahead.titles(train)
    lane = GenerateLane(shared, lambda: None, TitleEmbedder(TITLES))
    table = lane.negatives(policy, rows, 1).result()
    lane.close()
    assert rows["candidates"].null_count == len(rows)
    pairs = pair_columns.with_utilities(preferences.pairs(rows, table), ahead, best=True)
    met, varied = Touched(train), 0
    for row, example, coming in zip(pairs.to_pylist(), train.to_pylist(), later, strict=True):
        n, start = example["timestamp"] // 100, 5 * ("ann", "bob").index(example["user"])
        own = {f"Film {(start + m) % 30}": (m % 5 + 1) / (m - n + 1) ** 0.5 for m in range(n, n + len(coming))}
        phi = dict(zip(row["rejected"], row["scores"][1:], strict=True))
        assert own.keys() - {row["chosen"], *row["history"]} == phi.keys() & met[example["user"]]
        assert phi == pytest.approx({title: own.get(title, 3 / math.sqrt(11)) for title in phi})
        varied += len(set(phi.values())) > 2
    assert varied > len(pairs) / 2


class Group:
    """Training workers that learn nothing."""

    def run(self, phase: Phase, progress: Callable[..., None]) -> dict:
        Path(phase.out).mkdir()
        return {"steps": [{"step": 1, "loss": 0.0, "lr": phase.lr}], "facts": {}, "proof": None}


def preferred(tmp_path: Path, train: pa.Table, rejected: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The rows that a preference step by ODPO, of three epochs, trains on, and its counts."""
    args = ["--objective", "odpo", "--prefer-batch", "4", "--prefer-epochs", "3"]
    shared, policy = lane_inputs(tmp_path, train, *args)
    negatives: Future = Future()
    negatives.set_result([preferences.with_numbers(rejected, train)])
    shared.made_by[negatives] = "01/negatives"
    lane = TrainLane(shared, Group, policy)
    try:
        policy = lane.prefer(policy, train, negatives, None, 1).result()
    finally:
        lane.close()
    record = read_json(policy.folder.parent / "metrics.json")["records"][0]
    rows = pq.read_table(policy.folder.parent / "rows.parquet")
    return rows, {name: record[name] for name in ("unordered", "left_out")}


def test_odpo_leaves_out_what_has_no_ordered_pair(train: pa.Table, tmp_path: Path) -> None:
    ids, titles, ratings = (train[name].to_pylist() for name in ("example_id", "target", "target_rating"))
    best, worst = ratings.index(5), ratings.index(1)
    user = train["user"].to_pylist()
    other = next(i for i in range(worst + 1, len(train)) if user[i] == user[worst])  # worth 2/√2, more than 1
    texts: list[list[str]] = [[] for _ in ids]
    texts[best], texts[worst] = ["Other 0", "Other 1"], [titles[other]]
    rows, counts = preferred(tmp_path / "a", train, negatives(train, *texts))
    assert rows["example_id"].to_pylist() == [ids[best]] * 4 and rows["weight"].to_pylist() == [1, 1, 1, 0]
    assert counts == {"unordered": 1, "left_out": len(train) - 1}
    texts[best] = []
    with pytest.raises(ValueError, match=r"01/prefer: none of 1 pairs .* worth more .* Take other --negatives"):
        preferred(tmp_path / "b", train, negatives(train, *texts))
    with pytest.raises(ValueError, match="01/prefer: there is no row to train on"):
        preferred(tmp_path / "c", train, negatives(train))
