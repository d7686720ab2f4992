"""popular, candidates, semantic, self_hard and mixtures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example as such_as
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rayrec.data import schema
from rayrec.data.candidates import candidates, with_candidates
from rayrec.data.catalogue import Catalogue
from rayrec.grounding import TitleEmbedder
from rayrec.negatives import NEGATIVES, mixture
from rayrec.negatives.draw import Draw
from rayrec.negatives.scored import unscored, with_scores
from tests.negatives.conftest import statistics

NAMES = [f"{word} {n}" for word in ("Night", "Dawn", "River", "Ghost") for n in range(8)]


@pytest.fixture(scope="module")
def many() -> Catalogue:
    """32 titles of four series, whose popularity is their number; the first of each series was never met."""
    popularity = np.array([int(name.split()[1]) for name in NAMES])
    return Catalogue.from_items(NAMES, [[]] * 32).with_training(popularity, [])


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    """Sixteen examples with a history of two titles of one series."""
    made = [
        {"example_id": f"e{i}", "split": "train", "user": f"u{i}", "timestamp": i}
        | {"history": [NAMES[2 * i], NAMES[2 * i + 1]], "target": NAMES[(2 * i + 2) % 32]}
        for i in range(16)
    ]
    return pa.Table.from_pylist(made, schema=schema.EXAMPLES)


def by_example(table: pa.Table) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in table.to_pylist():
        found.setdefault(row["example_id"], []).append(row)
    return found


@pytest.mark.parametrize("name", ["random", "popular", "candidates", "semantic"])
def test_negatives_are_distinct_items_outside_history_and_target(many: Catalogue, rows: pa.Table, name: str) -> None:
    draw = Draw(3, 0, 1, "p", similar=TitleEmbedder(NAMES))
    table = NEGATIVES[name].finish(rows, None, many, draw)
    assert table.schema == schema.NEGATIVES and set(table["sampler"].to_pylist()) == {name}
    for example, (key, made) in zip(rows.to_pylist(), by_example(table).items(), strict=True):
        texts = [row["text"] for row in made]
        assert key == example["example_id"] and [row["k"] for row in made] == [0, 1, 2]
        assert len(set(texts)) == 3 and not set(texts) & {*example["history"], example["target"]}
        assert set(texts) <= set(NAMES)
    apart = pa.concat_tables([NEGATIVES[name].finish(rows.slice(i, 1), None, many, draw) for i in range(16)])
    assert apart.to_pylist() == table.to_pylist()
    assert statistics([(table, rows, None)], many, 3)["in_catalogue"] == 1


@pytest.mark.parametrize("name", ["random", "popular", "candidates", "semantic"])
def test_titles_that_no_policy_wrote_can_be_scored(many: Catalogue, rows: pa.Table, name: str) -> None:
    plain = NEGATIVES[name].finish(rows, None, many, Draw(3, 0, 1, "p", similar=TitleEmbedder(NAMES)))
    titles = unscored(plain)
    assert [title for one in titles.values() for title in one] == plain["text"].to_pylist()
    made = with_scores(plain, scored(titles))
    assert made.schema == schema.NEGATIVES and made.drop_columns("logprob") == plain.drop_columns("logprob")
    assert made["logprob"].to_pylist() == [logprob(row["example_id"], row["text"]) for row in made.to_pylist()]
    assert not unscored(made)


def test_a_row_has_the_log_probability_of_its_own_text(many: Catalogue, rows: pa.Table) -> None:
    """Places that nothing was written for, and titles that stand for the target or for no title, are scored."""
    texts = [[row["target"]] if i % 2 else [f"{NAMES[(2 * i + 5) % 32]}!"] for i, row in enumerate(rows.to_pylist())]
    wrote = pa.table({"example_id": rows["example_id"], "texts": texts, "logprobs": [[-7.0]] * 16})
    for embedder in (None, TitleEmbedder(NAMES)):
        plain = NEGATIVES["self_play"].finish(rows, wrote, many, Draw(3, 0, 1, "p", embedder=embedder))
        made = with_scores(plain, scored(unscored(plain))).to_pylist()
        raw = [row["raw"] == row["text"] for row in made]
        assert sum(raw) == (0 if embedder else 8)
        for row, own in zip(made, raw, strict=True):
            assert row["logprob"] == (-7 if own else logprob(row["example_id"], row["text"]))


def logprob(example_id: str, title: str) -> float:
    return -1.0 - int(example_id[1:]) - NAMES.index(title) / 32


def scored(titles: dict[str, list[str]]) -> pa.Table:
    logprobs = [[logprob(name, title) for title in one] for name, one in titles.items()]
    return pa.table({"example_id": list(titles), "texts": list(titles.values()), "logprobs": logprobs})


def test_popular_follows_popularity(many: Catalogue) -> None:
    base = {"split": "train", "user": "u", "timestamp": 0, "history": ["Night 7"], "target": "Dawn 7"}
    examples = pa.Table.from_pylist([{"example_id": f"e{i}", **base} for i in range(4000)], schema=schema.EXAMPLES)
    drawn = NEGATIVES["popular"].finish(examples, None, many, Draw(1, 0, 0, "p"))
    count = Counter(drawn["text"].to_pylist())
    total = many.popularity.sum() - 14
    for title, mass in zip(NAMES, many.popularity, strict=True):
        p = 0 if title in ("Night 7", "Dawn 7") else mass / total
        assert abs(count[title] - 4000 * p) <= 4.5 * (4000 * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("name", ["random", "popular", "semantic"])
def test_too_few_items_are_refused(many: Catalogue, rows: pa.Table, name: str) -> None:
    with pytest.raises(ValueError, match=r"Example e0: found 29 items .* wanted 30"):
        NEGATIVES[name].finish(rows, None, many, Draw(30, 0, 0, "p", similar=TitleEmbedder(NAMES)))


def test_popular_takes_items_nobody_met_last(many: Catalogue, rows: pa.Table) -> None:
    table = NEGATIVES["popular"].finish(rows, None, many, Draw(28, 0, 0, "p"))
    for made in by_example(table).values():
        met = [int(row["text"].split()[1]) > 0 for row in made]
        assert met == sorted(met, reverse=True) and not all(met)


def test_semantic_is_the_largest_cosine_to_the_mean_of_the_history(many: Catalogue, rows: pa.Table) -> None:
    embedder = TitleEmbedder(NAMES)
    found = by_example(NEGATIVES["semantic"].finish(rows, None, many, Draw(4, 0, 0, "p", similar=embedder)))
    dense: Any = embedder.embed(NAMES)
    unit = torch.nn.functional.normalize(torch.from_numpy(dense.toarray()).double()).numpy()
    for example in rows.to_pylist():
        mean = np.mean([unit[many.index[title]] for title in example["history"]], axis=0)
        free = [i for i, t in enumerate(NAMES) if t not in (*example["history"], example["target"])]
        cosine = {i: unit[i] @ mean for i in free}
        texts = [row["text"] for row in found[example["example_id"]]]
        worst = min(cosine[many.index[text]] for text in texts)
        assert worst >= max(cosine[i] for i in free if NAMES[i] not in texts) - 1e-6
        assert texts[0].split()[0] == example["history"][0].split()[0]  # of the same series
    with pytest.raises(ValueError, match="found no embedder"):
        NEGATIVES["semantic"].finish(rows, None, many, Draw(1, 0, 0, "p"))


def test_candidates_are_those_of_the_prompt(many: Catalogue, rows: pa.Table) -> None:
    touched = {f"u{i}": frozenset(NAMES[: 4 + i // 4]) for i in range(16)}
    draw = Draw(5, 3, 0, "p", touched=touched)
    found = by_example(NEGATIVES["candidates"].finish(rows, None, many, draw))
    for example in rows.to_pylist():
        listed = candidates(example, touched[example["user"]], many, 3)
        wrong = [title for title in listed if title != example["target"]]
        assert {row["text"] for row in found[example["example_id"]]} < set(wrong)
        assert not set(wrong) & touched[example["user"]]


def test_candidates_are_rejected_wherever_they_stand(many: Catalogue) -> None:
    """Rejected titles stand in all places of the list alike, and in other ones in every iteration."""
    base = {"split": "train", "user": "u", "timestamp": 0, "history": ["Night 7"], "target": "Dawn 7"}
    rows = pa.Table.from_pylist([{"example_id": f"e{i}", **base} for i in range(2000)], schema=schema.EXAMPLES)
    rows = with_candidates(rows, {}, many, 0)
    listed = dict(zip(rows["example_id"].to_pylist(), rows["candidates"].to_pylist(), strict=True))
    places = []
    for iteration in (1, 2):
        made = NEGATIVES["candidates"].finish(rows, None, many, Draw(3, 0, iteration, "p")).to_pylist()
        places.append([listed[row["example_id"]].index(row["text"]) for row in made])
    for found in places:
        assert chisquare(np.bincount(found, minlength=20)).pvalue > 1e-3
    assert np.mean(np.equal(*places)) < 0.1


def test_self_hard_takes_what_the_policy_holds_likeliest(many: Catalogue, rows: pa.Table) -> None:
    sampler, draw = NEGATIVES["self_hard"], Draw(3, 0, 0, "p")
    assert sampler.choices is not None and sampler.decode == "score"
    lists = sampler.choices(rows, many, draw)
    logprobs = [np.random.default_rng(i).normal(-5, 2, 20).astype(np.float32).tolist() for i in range(16)]
    outputs = pa.table({"example_id": rows["example_id"], "texts": lists, "logprobs": logprobs})
    found = by_example(sampler.finish(rows, outputs, many, draw))
    for example, listed, scored in zip(rows.to_pylist(), lists, logprobs, strict=True):
        score = dict(zip(listed, scored, strict=True))
        wrong = sorted((t for t in listed if t != example["target"]), key=lambda t: -score[t])
        made = found[example["example_id"]]
        assert [row["text"] for row in made] == wrong[:3]
        assert [row["logprob"] for row in made] == pytest.approx([score[t] for t in wrong[:3]])


def test_parse() -> None:
    assert mixture.parse(["self_play"]) == {"self_play": 1.0}
    assert mixture.parse(["self_play:0.75", "random:0.25"]) == {"self_play": 0.75, "random": 0.25}


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["self_pray"], "no sampler 'self_pray'. Choose from self_play,"),
        (["random", "self_play"], "a mixture needs shares"),
        (["random:0.5", "random:0.5"], "names random twice"),
        (["random:half", "popular:0.5"], "'half' is no number"),
        (["random:0.5", "popular:0.4"], "sum to 1, found 0.9"),
        (["random:1.5", "popular:-0.5"], "above 0"),
        (["random:nan", "popular:0.5"], "above 0"),
        ([], "sum to 1, found 0"),
    ],
)
def test_parse_refuses(specs: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        mixture.parse(specs)


@settings(max_examples=60)
@such_as([16, 7, 17], 260)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 300))
def test_assign_gives_exact_shares_whatever_the_order(weights: list[int], size: int) -> None:
    shares = {name: w / sum(weights) for name, w in zip(NEGATIVES, weights, strict=False)}
    ids = [f"e{i}" for i in range(size)]
    table = pa.table({"example_id": pa.array(ids, pa.string())})
    found = mixture.assign(table, shares, 0, 1)
    assert sorted(i for rows in found.values() for i in rows) == list(range(len(ids)))
    for name, share in shares.items():
        distinct = {ids[i] for i in found.get(name, [])}
        assert abs(len(distinct) - share * size) < 1
        whole = sum(round(other * size) for other in shares.values()) == size
        if whole and abs(share * size % 1 - 0.5) > 1e-6:  # of two halves either may be rounded up
            assert len(distinct) == round(share * size)
    turned = mixture.assign(table.take(np.arange(size)[::-1]), shares, 0, 1)
    assert {n: {ids[i] for i in r} for n, r in found.items()} == {
        n: {ids[::-1][i] for i in r} for n, r in turned.items()
    }
