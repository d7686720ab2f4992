"""The comparison's numbers against plain loops, its pages, and the command lines of its cells."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro

from rayrec.commands import baselines
from rayrec.commands import compare as job
from rayrec.compare import page
from rayrec.compare.cells import Cell, account, finished_phases, read_cell, read_used
from rayrec.compare.compare import compare, pareto
from rayrec.compare.published import published
from rayrec.compare.tables import Row
from rayrec.config import BaselinesConfig
from rayrec.data import schema
from rayrec.deciding import deciding
from rayrec.methods import BASELINES, METHODS, baseline_args, decodes, parse
from rayrec.metrics import METRICS, Metric

ROOT = Path(__file__).parents[2]


ITEMS = [f"Film {i}" for i in range(12)]


def cell(method: str, seed: int, hits: float, n: int = 40) -> Cell:
    """A cell whose lists hold the target in about a share ``hits`` of the rows; 20 users have two rows each."""
    draw = np.random.default_rng([seed, int(100 * hits)])
    rows = []
    for i in range(n):
        target = ITEMS[(i + seed) % len(ITEMS)]
        others = [t for t in draw.permutation(ITEMS) if t != target][:5]
        if draw.random() < hits:
            others[int(draw.integers(5))] = target
        rows.append({"example_id": f"s{seed}e{i}", "target": target, "titles": [str(t) for t in others]})
    base: dict[str, Any] = {"policy": "p", "decode": "beams", "texts": [], "logprobs": []}
    table = pa.Table.from_pylist([row | base for row in rows], schema=schema.PREDICTIONS)
    lists = [row["titles"] for row in rows]
    everything = [t for one in lists for t in one]
    record: dict[str, Any] = {"N": n, "DivRatio@5": len(set(everything)) / len(everything)}
    top = sum(count for _, count in Counter(everything).most_common(3))
    record |= {"ORRatio@5": top / len(everything), "DGU@5": None}
    record |= {"HR@5": float(np.mean([r["target"] in r["titles"] for r in rows]))}
    gains = [1 / np.log2(r["titles"].index(r["target"]) + 2) if r["target"] in r["titles"] else 0 for r in rows]
    record |= {"NDCG@5": float(np.mean(gains)), "MGU@5": 0.1 * seed}
    record |= {"genres": {"GH": {"a": 0.5, "b": 0.5}, "GP@5": {"a": 0.5 + hits / 2, "b": 0.5 - hits / 2}}}
    return Cell(method, seed, record, table, [f"u{i // 2}" for i in range(n)])


CELLS = [
    cell(method, seed, hits) for method, hits in (("BIGRec", 0.2), ("SPRec", 0.8), ("RW", 0.25)) for seed in (0, 1, 2)
]


def test_means_are_over_seeds_and_differences_are_paired() -> None:
    rows = {row["method"]: row for row in compare(CELLS, "BIGRec", 5)}
    assert list(rows) == ["BIGRec", "SPRec", "RW"]
    for method, row in rows.items():
        of = [c.record for c in CELLS if c.method == method]
        for name in ("HR@5", "NDCG@5", "DivRatio@5", "MGU@5"):
            values = [record[name] for record in of]
            assert row[name]["value"] == pytest.approx(np.mean(values))
            assert row[name]["seed_sd"] == pytest.approx(np.std(values, ddof=1))
        for name in ("HR@5", "NDCG@5", "DivRatio@5"):
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
        assert row["MGU@5"]["low"] is None and row["DGU@5"]["value"] is None
    gain = rows["SPRec"]["ΔHR@5"]
    assert gain["value"] == pytest.approx(rows["SPRec"]["HR@5"]["value"] - rows["BIGRec"]["HR@5"]["value"])
    assert gain["p"] <= gain["p_holm"] < 0.05 < rows["RW"]["ΔHR@5"]["p_holm"]
    assert "ΔHR@5" not in rows["BIGRec"]
    assert rows["SPRec"]["gaps"] == pytest.approx({"a": 0.4, "b": -0.4})


def ratio(name: str, lists: list[list[str]]) -> float:
    """DivRatio or ORRatio of lists, as SPRec section 5.1.3 defines them."""
    counts = Counter(title for titles in lists for title in titles)
    best = len(counts) if name == "DivRatio" else sum(count for _, count in counts.most_common(3))
    return best / counts.total()


@pytest.mark.parametrize("name", ["DivRatio", "ORRatio"])
def test_the_jackknife_is_over_the_users_of_all_seeds(name: str) -> None:
    rows = {row["method"]: row for row in compare(CELLS, "BIGRec", 5)}
    without: dict[str, np.ndarray] = {}
    for method in ("BIGRec", "SPRec"):
        members = [c for c in CELLS if c.method == method]
        means = []
        for user in sorted({user for c in members for user in c.users}):
            kept = [
                [t for t, u in zip(c.predictions["titles"].to_pylist(), c.users, strict=True) if u != user]
                for c in members
            ]
            means.append(np.mean([ratio(name, lists) for lists in kept]))
        without[method] = np.array(means)
    n = len(without["BIGRec"])
    found = [(rows["BIGRec"][f"{name}@5"], without["BIGRec"])]
    found.append((rows["SPRec"][f"Δ{name}@5"], without["SPRec"] - without["BIGRec"]))
    for entry, values in found:
        half = 1.959964 * np.sqrt((n - 1) / n * np.sum((values - values.mean()) ** 2))
        assert (entry["low"], entry["high"]) == pytest.approx((entry["value"] - half, entry["value"] + half), rel=1e-5)
    gap = rows["SPRec"][f"{name}@5"]["value"] - rows["BIGRec"][f"{name}@5"]["value"]
    assert rows["SPRec"][f"Δ{name}@5"]["value"] == pytest.approx(gap) and f"Δ{name}@5" not in rows["BIGRec"]


def test_a_ratio_of_items_that_do_not_stand_out_has_no_interval() -> None:
    """Uniform lists over 4,000 items: the jackknife of ORRatio would cover the truth half of the time."""
    draw, cells = np.random.default_rng(0), []
    for method, items in (("BIGRec", 4000), ("SPRec", 20)):
        lists = [[str(item) for item in draw.choice(items, 5, replace=False)] for _ in range(1000)]
        base: dict[str, Any] = {"policy": "p", "decode": "beams", "texts": [], "logprobs": [], "target": "none"}
        rows = [base | {"example_id": f"e{i}", "titles": titles} for i, titles in enumerate(lists)]
        record: dict[str, Any] = {**CELLS[0].record, "N": 1000, "ORRatio@5": ratio("ORRatio", lists)}
        table = pa.Table.from_pylist(rows, schema=schema.PREDICTIONS)
        cells.append(Cell(method, 0, record, table, [f"u{i}" for i in range(1000)]))
    one, other = compare(cells, "BIGRec", 5)
    assert one["ORRatio@5"]["value"] < 0.02 and one["ORRatio@5"]["low"] is None
    assert other["ORRatio@5"]["low"] < other["ORRatio@5"]["value"] and other["ΔORRatio@5"]["low"] is None
    assert one["DivRatio@5"]["low"] is not None


def test_a_metric_from_outside_is_compared_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of rows gets an interval and a test, one of all lists with ``without`` a jackknife."""
    first = Metric("MRR", "up", of_rows=lambda found, k: 1 / np.maximum(found.rank_N, 1), unit="1/rank")
    monkeypatch.setitem(METRICS, "MRR", first)
    monkeypatch.setitem(METRICS, "Spread", replace(METRICS["DivRatio"], name="Spread"))
    cells = [replace(c, record={**c.record, "MRR@5": 0.5, "Spread@5": c.record["DivRatio@5"]}) for c in CELLS]
    rows = compare(cells, "BIGRec", 5)
    gain = rows[1]["ΔMRR@5"]
    assert gain["low"] <= gain["value"] <= gain["high"] and gain["p"] <= gain["p_holm"]
    assert rows[1]["Spread@5"] == rows[1]["DivRatio@5"] and rows[1]["ΔSpread@5"] == rows[1]["ΔDivRatio@5"]
    head, _ = page.table(rows, 5, "BIGRec", wide=True)
    assert {"MRR@5", "ΔMRR to BIGRec", "Spread@5", "ΔSpread to BIGRec"} <= set(head)
    assert "MRR@5" in page.page(rows, [], 5, "BIGRec", "t", "s") and "Spread@5.low" in page.as_csv(rows)


def test_other_seeds_are_not_compared_and_other_rows_are_refused() -> None:
    rows = {row["method"]: row for row in compare([*CELLS[:3], *CELLS[3:5]], "BIGRec", 5)}
    assert rows["SPRec"]["seeds"] == [0, 1] and "ΔHR@5" not in rows["SPRec"]
    with pytest.raises(ValueError, match="RW and BIGRec answered different rows"):
        compare([CELLS[0], cell("RW", 0, 0.5, n=20)], "BIGRec", 5)
    with pytest.raises(ValueError, match="--against S-DPO is not among the finished methods"):
        compare(CELLS, "S-DPO", 5)


def test_pareto() -> None:
    points = [(1.0, 1.0), (2.0, 0.5), (0.5, 0.9), (2.0, 0.5), (None, 3.0), (1.0, 0.4)]
    assert pareto(points) == [True, True, False, True, False, False]


def test_page_and_csv_hold_every_method_and_escape() -> None:
    cells = [*CELLS, *(cell("<b>", seed, 0.5) for seed in (0, 1, 2))]
    rows = compare(cells, "BIGRec", 5)
    html = page.page(rows, published("../data/sprec/Goodreads", "open"), 5, "BIGRec", "T & U", "about")
    assert "T &amp; U" in html and '<td class="word policy">&lt;b&gt;' in html and "<b>" not in html
    assert "0.0310" in html and "not ours" in html and html.count("<svg") == 2
    lines = list(csv.DictReader(io.StringIO(page.as_csv(rows))))
    assert [line["method"] for line in lines] == ["BIGRec", "SPRec", "RW", "<b>"]
    assert float(lines[1]["HR@5.value"]) == pytest.approx(rows[1]["HR@5"]["value"])
    assert lines[0]["ΔHR@5.p_holm"] == "" and lines[1]["seeds"] == "0 1 2"


def test_a_varied_setting_is_drawn() -> None:
    cells = [cell(f"SPRec beta={value:g}", seed, value / 2) for value in (0.1, 0.5, 1.0) for seed in (0, 1)]
    rows = compare([*(c for c in CELLS[:2]), *cells], "BIGRec", 5)
    for row in rows[1:]:
        row["varied"] = {"method": "SPRec", "value": float(row["method"].split("=")[1])}
    html = page.page(rows, [], 5, "BIGRec", "t", "about", "beta")
    assert "<h2>Effect of beta</h2>" in html and html.count("<svg") == 3


def test_bars_that_have_no_room_are_counted() -> None:
    names = [f"M{i}" for i in range(9)]
    rows = compare([cell(name, 0, 0.5) for name in names], "M0", 5)
    assert "2 more methods have no bars" in page.page(rows, [], 5, "M0", "t", "about")
    assert "no bars" not in page.page(rows[:7], [], 5, "M0", "t", "about")


def test_published_rows_are_of_the_papers_data_and_protocol_only() -> None:
    assert {row["method"] for row in published("/x/sprec/MovieLens/", "open")} >= {"BIGRec", "SPRec", "D3"}
    assert {row["N"] for row in published("MovieLens", "open")} == {980}
    for name in ("movielens-100k", "lastfm", "ml-1m", "steam-hours", ""):
        assert published(name, "open") == []
    for name in ("MovieLens", "Goodreads", "movielens-latest-small", ""):
        assert published(name, "candidates") == []
    found = {row["method"]: row for row in published("/x/movielens-100k", "candidates")}
    assert (found["S-DPO"]["HR@1"], found["S-DPO"]["ValidRatio"], found["S-DPO"]["N"]) == (0.5263, 0.9895, None)
    sources = {row["source"].split(",")[0] for row in published("steam-hours", "candidates")}
    assert sources == {"RecPO table 1", "RecPO table 2"}
    margins = [row for row in published("steam-hours", "candidates") if "ValidRatio" not in row]
    assert [(row["method"], row["HR@1_liked"]) for row in margins] == [
        ("RecPO-log-diff", 0.4284),
        ("RecPO-log-ratio", 0.4517),
    ]


ROWS = [(f"e{i}", f"u{i // 2}", f"Film {i}") for i in range(8)]


#: RecPO evaluates on the first three rows.
RATINGS = [5.0, 4.0, 4.0, 3.0, 2.0, 1.0, None, None]


def put_cell(
    runs: Path, name: str, decoded: dict[str, int], phase: str = "00/evaluate", ratings: list | None = None
) -> Path:
    """A run folder whose lists, for each way of decoding, have the target first in the first so many rows."""
    folder = runs / name
    (folder / phase).mkdir(parents=True)
    (folder / "examples").mkdir(exist_ok=True)
    pq.write_table(
        pa.table(
            {
                "example_id": [r[0] for r in ROWS],
                "user": [r[1] for r in ROWS],
                "target_rating": pa.array(ratings or [None] * len(ROWS), pa.float32()),
            }
        ),
        folder / "examples" / "test.parquet",
    )
    titles = [title for *_, title in ROWS]
    pq.write_table(
        pa.table({"title": ["Other", *titles], "popularity": [5, *[4] * 5, *[0] * 3]}), folder / "catalogue.parquet"
    )
    rows, records = [], []
    for decode, right in decoded.items():
        lists = [
            [title] if i < right else ["Other"] if decode != "greedy" else [] for i, (*_, title) in enumerate(ROWS)
        ]
        base = {"policy": "p", "decode": decode, "texts": [], "logprobs": []}
        rows += [base | {"example_id": r[0], "target": r[2], "titles": t} for r, t in zip(ROWS, lists, strict=True)]
        rows.append(base | {"example_id": "later", "target": "Film 1", "titles": ["Film 1"]})
        record = {"split": "test", "N": 8, "HR@1": right / 8, "NDCG@1": right / 8, "MGU@1": None, "DGU@1": None}
        record |= {"DivRatio@1": ratio("DivRatio", lists), "ORRatio@1": ratio("ORRatio", lists), "genres": {"GH": None}}
        record |= {"ValidRatio": sum(map(bool, lists)) / 8, "AvoidanceRate": 0.25}
        record |= {"HR@1_liked": min(right, 3) / 3, "N_liked": 3} if ratings else {}
        way = {} if decode == "popular" else {"decode": decode}
        records.append(record | way)
        if phase != "00/sasrec":
            records.append({"split": "adherence", "N": 1, "AdherenceRate": right / 16} | way)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema.PREDICTIONS), folder / phase / "predictions.parquet")
    (folder / phase / "metrics.json").write_text(json.dumps({"records": records}))
    (folder / phase / "DONE").write_text("{}")
    return folder


def test_a_cell_of_candidates_is_ranked_and_its_answers_are_counted(tmp_path: Path) -> None:
    folder = put_cell(tmp_path, "S-DPO-seed0", {"score": 6, "greedy": 4})
    put_cell(tmp_path / "more", "S-DPO-seed0", {"popular": 2}, "00/baseline")
    os.rename(tmp_path / "more" / "S-DPO-seed0" / "00" / "baseline", folder / "00" / "baseline")
    put_cell(tmp_path, "SASRec-seed0", {"score": 5}, "00/sasrec")
    ways = decodes("S-DPO", "candidates")
    cells = [read_cell(folder, "Popular", 0, ("popular",)), read_cell(folder, "S-DPO", 0, ways)]
    cells.append(read_cell(tmp_path / "SASRec-seed0", "SASRec", 0, decodes("SASRec", "candidates", ["greedy"])))
    assert [c.ids for c in cells] == [[r[0] for r in ROWS]] * 3  # not the rows of other splits
    rows = {row["method"]: row for row in compare(cells, "S-DPO", 1)}
    assert [rows[m]["HR@1"]["value"] for m in ("Popular", "S-DPO", "SASRec")] == [2 / 8, 6 / 8, 5 / 8]
    assert [rows[m]["ValidRatio"]["value"] for m in ("S-DPO", "SASRec")] == [4 / 8, 1]
    assert rows["S-DPO"]["AdherenceRate"]["value"] == 6 / 16 and "AdherenceRate" not in rows["SASRec"]
    # HR@1 is tested once for each of two methods; NDCG@1, which is the same, is not.
    assert "ΔNDCG@1" not in rows["SASRec"]
    assert rows["Popular"]["ΔHR@1"]["p_holm"] == pytest.approx(min(1, 2 * rows["Popular"]["ΔHR@1"]["p"]))
    rows["S-DPO"] |= {"seconds": 1234.4, "memory": 5.04e9}
    head, lines = page.table(list(rows.values()), 1, "S-DPO")
    assert head[:4] == ["method", "HR@1", "DivRatio@1", "ORRatio@1"]
    assert head[4:7] == ["ValidRatio", "AvoidanceRate", "AdherenceRate"]
    assert head[7:] == ["ΔHR to S-DPO", "seconds", "memory, GB"]
    assert lines[1][-2:] == ["1,234", "5.0"] and lines[2][6] == "–" and lines[0][-1] == "–"
    with pytest.raises(ValueError, match="no evaluation by --decode beams"):
        read_cell(folder, "S-DPO", 0, ("beams",))
    with pytest.raises(ValueError, match="no evaluation is finished"):
        read_cell(tmp_path / "nowhere", "S-DPO", 0, ways)


def test_cold_targets_are_compared_and_not_tested(tmp_path: Path) -> None:
    """The targets of the last three rows were never in training; 6 and 8 first rows are right."""
    methods, cells, without = {"BIGRec": 6, "SPRec": 8, "RW": 3}, [], []
    for method, right in methods.items():
        one = read_cell(put_cell(tmp_path, method, {"beams": right}), method, 0, ("beams",))
        hits = max(0, right - 5) / 3
        without.append(one)
        cells.append(replace(one, record={**one.record, "N_cold": 3, "HR_cold@1": hits, "NDCG_cold@1": hits}))
    plain, rows = (compare(some, "BIGRec", 1) for some in (without, cells))
    assert [row["HR_cold@1"]["value"] for row in rows] == pytest.approx([1 / 3, 1, 0])
    assert rows[0]["HR_cold@1"]["low"] < 1 / 3 < rows[0]["HR_cold@1"]["high"] and rows[0]["N_cold"] == 3
    gain = rows[1]["ΔHR_cold@1"]
    assert gain["value"] == pytest.approx(2 / 3) and "p" not in gain and gain["low"] <= gain["value"] <= gain["high"]
    assert [row["ΔHR@1"]["p_holm"] for row in rows[1:]] == [row["ΔHR@1"]["p_holm"] for row in plain[1:]]
    assert "HR_cold@1" not in plain[0] and "N_cold" not in plain[0]
    head, lines = page.table(rows, 1, "BIGRec")
    assert {"N cold", "HR_cold@1", "ΔHR_cold to BIGRec"} <= {*head} and lines[0][head.index("N cold")] == "3"
    text = page.page(rows, [], 1, "BIGRec", "t", "s")
    assert "HR_cold and NDCG_cold are over the rows whose target training never" in text
    assert "cold" not in page.page(plain, [], 1, "BIGRec", "t", "s").split("</style>")[1]


def test_recpos_own_measure_is_tested_and_shown(tmp_path: Path) -> None:
    """HR@1 over the rows whose target is rated 4 or more stands beside that of all rows, and beside RecPO's numbers."""
    methods = {"BIGRec": 1, "RecPO": 7}
    folders = {m: put_cell(tmp_path, m, {"score": right}, ratings=RATINGS) for m, right in methods.items()}
    cells = [read_cell(folder, method, 0, ("score",)) for method, folder in folders.items()]
    rows = compare(cells, "BIGRec", 1)
    assert [(row["HR@1"]["value"], row["HR@1_liked"]["value"]) for row in rows] == [(1 / 8, 1 / 3), (7 / 8, 1)]
    one, gain = rows[0]["HR@1_liked"], rows[1]["ΔHR@1_liked"]
    assert one["low"] < 1 / 3 < one["high"] and gain["value"] == pytest.approx(2 / 3) and gain["p_holm"] <= 1
    head, _ = page.table(rows, 1, "BIGRec")
    assert head.index("HR@1") + 1 == head.index("HR@1_liked") and "ΔHR@1_liked to BIGRec" in head
    text = page.page(rows, published("movielens-1m", "candidates"), 1, "BIGRec", "t", "s")
    after = text[text.index("RecPO table 1") :]
    assert "HR@1_liked" in after[: after.index("</th>") * 4] and "<th>HR@1</th>" not in after


def test_every_method_has_one_way_to_answer() -> None:
    for method in METHODS:
        own = METHODS[method].get("evaluate", {}).get("decode")
        if method in ("D3", "TALLRec", "ChatRec"):
            assert own == decodes(method, "open") == decodes(method, "candidates", ["greedy", "score"])
        else:
            assert decodes(method, "open") == ("beams",) and decodes(method, "candidates") == ("score", "greedy")
            assert decodes(method, "candidates", ["greedy"]) == ("greedy",)
    assert {decodes(m, "open", ["greedy"]) for m in BASELINES} == {("unmasked",)}
    assert {decodes(m, "candidates", ["greedy"]) for m in BASELINES} == {("score",)}


def settled(tmp_path: Path, *words: str, **args: Any) -> tuple[Namespace, list[Any], list[str]]:
    """The settings, rows and flags of a comparison that may start."""
    given = {"methods": None, "preset": None, "scale": "toy", "seeds": [0], "vary": None, "against": "BIGRec"}
    given |= {"decode": (), "endpoint": None, "served": None, "k": None, "runs": str(tmp_path), "name": "c", "tune": []}
    made = Namespace(**(given | {"at_once": 1, "average_last": None} | args))
    rest, rows = job.settle(made, list(words))
    job.check(made, rows, rest)
    return made, rows, rest


def cell_config(made: Namespace, rows: list[Any], rest: list[str], method: str) -> Any:
    row = next(row for row in rows if row.method == method)
    return parse("", job.cell_args(made, row, 3, rest))


@pytest.mark.parametrize("preset", ["sdpo", "recpo"])
def test_presets_that_choose_take_every_decode(tmp_path: Path, preset: str) -> None:
    for decode in ([], ["greedy"], ["score"]):
        made, rows, rest = settled(tmp_path, preset=preset, decode=decode)
        assert made.k == 1 and made.protocol == "candidates"
        for row in rows:
            config = parse("", job.cell_args(made, row, 3, rest))
            assert (config.data.protocol, config.data.seed) == ("candidates", 3)
            if row.method not in BASELINES:
                assert config.evaluate.decode == decodes(row.method, "candidates", decode)


def test_presets_have_the_papers_rows_and_settings(tmp_path: Path) -> None:
    made, rows, rest = settled(tmp_path, preset="recpo")
    wanted = {"zero-shot", "BIGRec", "Caser", "DPO", "SimPO", "S-DPO", "RecPO", "RecPO-log-ratio", "RecPO-log-diff"}
    assert wanted | {"GRU4Rec", "SASRec"} == {row.method for row in rows}
    data = cell_config(made, rows, rest, "DPO").data
    assert (data.history, data.ratings, data.split, data.k_core) == (20, True, "leave_last_two", 5)
    made, rows, rest = settled(tmp_path, "--history=7", "--no-ratings", "--split", "time", preset="recpo")
    data = cell_config(made, rows, rest, "DPO").data
    assert (data.history, data.ratings, data.split) == (7, False, "time")
    _, rows, _ = settled(tmp_path, preset="sdpo")
    assert not {"MoRec", "ChatRec"} & {row.method for row in rows}


def test_methods_of_a_table_differ_in_what_it_is_about(tmp_path: Path) -> None:
    """METHODS section 4: S-DPO's DPO differs from S-DPO in K alone, and RecPO's baselines learn from RecPO's rows."""

    def differing(made: Namespace, rows: list[Any], rest: list[str], *methods: str) -> set[str]:
        one, other = (deciding(cell_config(made, rows, rest, method)) for method in methods)
        return {name for name in one if one[name] != other[name]}

    for model in ("tiny", "some/model"):
        found = settled(tmp_path, "--model", model, preset="sdpo")
        assert differing(*found, "DPO", "S-DPO") == {"loss.objective", "train.num_negatives"}
        found = settled(tmp_path, "--model", model, preset="recpo")
        assert differing(*found, "DPO", "S-DPO") == {"loss.objective", "train.num_negatives"}
        assert differing(*found, "S-DPO", "RecPO") == {"loss.objective", "loss.lam", "loss.margin"}
        assert differing(*found, "DPO", "SimPO") == {"loss.objective"}
        train = cell_config(*found, "BIGRec").train
        assert (train.target, train.min_rating, train.first_schedule) == (
            "utility",
            4.0,
            "linear" if model == "tiny" else "cosine",
        )
        assert cell_config(*found, "DPO").loss.beta == 1
    assert (train.first_lr, train.batch, train.first_warmup) == (1e-5, 128, 0.05)
    train = cell_config(*found, "DPO").train
    assert (train.lr, train.prefer_batch, train.prefer_epochs) == (1e-5, 128, 3)


def test_the_document_says_what_tables_hold_fixed() -> None:
    text = (ROOT / "docs" / "methods.md").read_text()
    part = text[text.index("## Published and set") : text.index("## Objectives")]
    for preset in job.SETTINGS:
        flags = [f"--{setting}" for setting in job.SETTINGS[preset].split(", ")]
        adapters = [f"--{setting}" for setting in job.PUBLISHED.get(preset, "").split(", ") if setting]
        cell = f"`{' '.join(flags)}`" + (f"; with adapters `{' '.join(adapters)}`" if adapters else "")
        assert f"| `jobs/compare.py --preset {preset}` | {cell} |" in part


def test_figures_5_and_6_are_the_papers(tmp_path: Path) -> None:
    """SPRec section 5.4: 1,024 rows, the mean of the last three iterations; K beams of the policy and S-DPO's loss."""
    made, rows, rest = settled(tmp_path, preset="figure6")
    assert made.average_last == 3 and [row.label for row in rows][:2] == ["BIGRec", "SPRec num-negatives=1"]
    for row in rows[1:]:
        config = parse("", job.cell_args(made, row, 0, rest))
        assert (config.train.negatives, config.loss.objective, config.loss.beta) == (("self_play_beam",), "sdpo", 0.1)
        assert (config.train.rows_per_iteration, config.train.iterations) == (1024, 5)
        assert config.train.num_negatives == int(dict(row.own)["num-negatives"])
    made, rows, rest = settled(tmp_path, preset="figure5")
    assert made.average_last == 3 and len(rows) == 6
    shares = [parse("", job.cell_args(made, row, 0, rest)).train.negatives for row in rows[1:]]
    assert shares[1] == ("self_play:0.75", "random:0.25")
    with pytest.raises(ValueError, match=r"--negatives self_play has 1 answer .*self_play_beam --objective sdpo"):
        settled(tmp_path, methods=["BIGRec", "SPRec"], vary=["num-negatives", "1", "3"])
    with pytest.raises(ValueError, match=r"--average-last 3: SPRec has 2 iterations\. Take --iterations 3"):
        settled(tmp_path, methods=["BIGRec", "SPRec"], average_last=3)


def test_the_last_evaluations_are_averaged(tmp_path: Path) -> None:
    for t, hits in enumerate((8, 1, 2, 3, 7)):
        put_cell(tmp_path, "SPRec-seed0", {"score": hits}, f"{t:02d}/evaluate")
    folder = tmp_path / "SPRec-seed0"
    one, mean, most = (read_cell(folder, "SPRec", 0, ("score",), last) for last in (1, 3, 9))
    assert [cell.record["HR@1"] for cell in (one, mean, most)] == [7 / 8, 12 / 24, 13 / 32]  # never the first SFT
    assert (len(mean.users), mean.record["N"]) == (8, 8)
    names = [(METRICS["HR"], 1)]
    assert [float(cell.values(names).mean()) for cell in (one, mean, most)] == [7 / 8, 12 / 24, 13 / 32]
    parts = [read_cell(folder, "SPRec", 0, ("score",)), *mean.earlier]
    wanted = np.mean([METRICS["ORRatio"].without(c.answers, c.users, 1) for c in parts], axis=0)
    assert np.allclose(mean.without(METRICS["ORRatio"], 1), wanted)


def test_a_mean_of_evaluations_is_unknown_where_one_of_them_is(tmp_path: Path) -> None:
    for t, known in ((1, False), (2, True), (3, True)):
        folder = put_cell(tmp_path, "SPRec-seed0", {"score": t}, f"{t:02d}/evaluate")
        file = folder / f"{t:02d}" / "evaluate" / "metrics.json"
        made = json.loads(file.read_text())
        more = {"DivRatio@1": 0.5, "genres": {"GH": {"a": 1.0}, "GP@1": {"a": 0.5}}}
        made["records"][0] |= more if known else {"DivRatio@1": None, "genres": {"GH": {"a": 1.0}, "GP@1": None}}
        file.write_text(json.dumps(made))
    record = read_cell(folder, "SPRec", 0, ("score",), 3).record
    assert (record["HR@1"], record["DivRatio@1"], record["N"]) == (2 / 8, None, 8)
    assert record["genres"] == {"GH": {"a": 1.0}, "GP@1": None}


def test_chatrec_alone_has_the_endpoint_and_morec_the_embedder(tmp_path: Path) -> None:
    flags = ("--embedder", "sentence", "--embedder-path", "x", "--engine", "torch")
    made, rows, rest = settled(tmp_path, *flags, preset="sdpo", endpoint="http://h/v1", served="m")
    chat, other = (cell_config(made, rows, rest, method).evaluate for method in ("ChatRec", "S-DPO"))
    assert (chat.engine, chat.endpoint, chat.served, chat.decode) == ("chat", "http://h/v1", "m", ("greedy",))
    assert (other.engine, other.endpoint, other.served) == ("torch", None, None)
    assert "MoRec" in {row.method for row in rows}
    with pytest.raises(ValueError, match="ChatRec, --endpoint URL and --served NAME go together"):
        settled(tmp_path, methods=["ChatRec", "BIGRec"], endpoint="http://h/v1")


@pytest.mark.parametrize(
    ("words", "args", "message"),
    [
        (["--seed", "7"], {}, "--seed would be that of every cell. Take --seeds"),
        (["--seed=7"], {}, "--seed would be that of every cell"),
        (["--method", "SPRec"], {}, "--method would be that of every cell. Take --methods"),
        ([], {"vary": ["seed", "1", "2"]}, "--seed would be that of every cell"),
        ([], {"methods": ["BIGRec", "LLaRA"]}, "LLaRA would choose from candidates alone. Add --protocol candidates"),
        *(([], {"name": name}, f"--name '{name}' is not a plain folder name") for name in ("a/b", "..", ".", "", ".c")),
        ([], {"k": 0}, "--k 0 is not among --top-k"),
        ([], {"methods": ["SASRec"], "against": "Popular"}, "--against Popular is not compared"),
        (["--embedder", "lm"], {"methods": ["BIGRec", "MoRec"]}, "MoRec reads item vectors from titles"),
    ],
)
def test_flags_of_single_cells_are_refused(tmp_path: Path, words: list[str], args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settled(tmp_path, *words, **({"methods": ["BIGRec"]} | args))


def test_a_varied_value_is_passed_on_as_typed(tmp_path: Path) -> None:
    args = {"methods": ["BIGRec", "SPRec"]}
    made, rows, rest = settled(tmp_path, vary=["rows-per-iteration", "1234567", "5"], **args)
    assert [row.label for row in rows][1] == "SPRec rows-per-iteration=1234567"
    assert cell_config(made, rows, rest, "SPRec").train.rows_per_iteration == 1234567
    made, rows, rest = settled(tmp_path, vary=["random-share", "0", "0.3", "1"], **args)
    found = [parse("", job.cell_args(made, row, 0, rest)).train.negatives for row in rows[1:]]
    assert found == [("self_play:1",), ("self_play:0.7", "random:0.3"), ("random:1",)]


def test_a_baseline_runs_in_the_place_of_the_language_models() -> None:
    flags = [
        "--embedder",
        "lm",
        "--embedder-path",
        "y",
        "--address",
        "local",
        "--device",
        "cpu",
        "--train-workers",
        "2",
    ]
    flags += ["--wait-seconds", "9", "--train-resource", "big", "--dry-run", "--on-existing", "overwrite"]
    config = parse("", [*flags, "--max-train-workers", "4", "--ratings", "--split", "leave_last_two"])
    made = tyro.cli(BaselinesConfig, args=baseline_args(config, "morec"))
    assert (made.sequential.embedder, made.sequential.embedder_path) == ("lm", "y")
    assert made.data == config.data and made.placement.max_train_workers is None
    for name in ("train_workers", "device", "address", "threads", "train_resource", "wait_seconds", "max_deaths"):
        assert getattr(made.placement, name) == getattr(config.placement, name)
    assert made.output.dry_run and made.output.on_existing == "overwrite"
    config = parse("", ["--embedder", "lm", "--model", "/models/x"])
    assert tyro.cli(BaselinesConfig, args=baseline_args(config, "morec")).sequential.embedder_path == "/models/x"


def test_a_baseline_gets_no_flag_that_it_refuses(tmp_path: Path) -> None:
    words = ["--generators", "3", "--sequential", "--checkpoint-steps", "5", "--train-workers", "2", "--no-share"]
    words += ["--placement", "apart"]
    made, rows, rest = settled(tmp_path, *words, "--keep", "all", methods=["BIGRec", "Caser"])
    line = job.command(made, rows[1], 0, rest, tmp_path)
    config = tyro.cli(BaselinesConfig, args=line[4:])
    assert config.placement.train_workers == 2
    baselines.check_read(config)
    assert "--generators" in job.command(made, rows[0], 0, rest, tmp_path)


def test_what_cells_took_outlives_a_death_amid_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell is over, and the process dies as it writes that down."""
    made, rows, rest = settled(tmp_path, methods=["BIGRec"])
    folder, before = tmp_path / "c", {"BIGRec-seed7": {"seconds": 1.0, "memory": 2, "finished": True}}
    folder.mkdir()
    (folder / "cells.json").write_text(json.dumps(before))
    monkeypatch.setattr(job, "command", lambda *_: [sys.executable, "-c", ""])

    def died(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as amid:
        amid.setattr(os, "replace", died)
        with pytest.raises(OSError, match="the disk is full"):
            job.run_cells(made, rows, made.seeds, rest, folder)
    assert json.loads((folder / "cells.json").read_text()) == before
    assert job.run_cells(made, rows, made.seeds, rest, folder) == {}
    assert read_used(folder).keys() == {"BIGRec-seed0", "BIGRec-seed7"}


def test_settings_are_tuned_on_validation_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that write an evaluation of validation rows: the best value of each method, and BIGRec's SFT for all."""
    best = {"BIGRec": "3e-4", "SPRec": "1e-5", "SPRec sft-loss=msl": "3e-5"}
    tune = [["first-lr", "1e-4", "3e-4"], ["lr", "1e-5", "3e-5"]]
    made, rows, rest = settled(tmp_path, methods=["BIGRec", "SPRec", "SPRec:sft-loss=msl", "SASRec"], tune=tune)

    def line(args: Namespace, row: Row, seed: int, rest: list[str], folder: Path) -> list[str]:
        value = 0.5 if row.tuned and row.tuned[-1][1] == best[row.label] else 0.25
        records = [{"split": split, "decode": "beams", "NDCG@5": value} for split in ("test", "valid")]
        phase = folder / f"{row.folder}-seed{seed}" / "02" / "evaluate"
        text = f"import json, pathlib; p = pathlib.Path({str(phase)!r}); p.mkdir(parents=True, exist_ok=True)\n"
        text += f"(p / 'metrics.json').write_text(json.dumps({{'records': {records}}})); (p / 'DONE').touch()"
        return [sys.executable, "-c", text]

    monkeypatch.setattr(job, "command", line)
    failed, chosen = job.tune(made, rows, rest, tmp_path)
    assert not failed
    assert [row.folder for row in chosen] == [
        "BIGRec first-lr=3e-4",
        "SPRec first-lr=3e-4 lr=1e-5",
        "SPRec sft-loss=msl first-lr=3e-4 lr=3e-5",
        "SASRec",
    ]
    assert chosen[1].validation == {"first-lr=3e-4 lr=1e-5": 0.5, "first-lr=3e-4 lr=3e-5": 0.25}
    config = cell_config(made, chosen[1:], rest, "SPRec")
    assert (config.train.first_lr, config.train.lr) == (3e-4, 1e-5)
    assert [row.label for row in chosen] == [row.label for row in rows]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["BIGrec"]}, "no method is named 'BIGrec'"),
        ({"methods": ["SPRec:sft-loss"]}, "wanted METHOD:flag=value,flag=value, such as SPRec:sft-loss=msl"),
        ({"methods": ["SASRec:lr=1"]}, "SASRec has no settings of its own here"),
        ({"methods": ["BIGRec"], "tune": [["lr", "1e-4"]]}, "wanted at least 2 values"),
        ({"methods": ["BIGRec"], "tune": [["lr", "x", "y"]]}, "wanted numbers"),
    ],
)
def test_rows_and_values_that_are_none_are_refused(tmp_path: Path, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settled(tmp_path, **given)


@pytest.mark.parametrize("text", ['{"BIGRec-se', "[]", "\udcff"])
def test_a_damaged_record_of_cells_is_refused_before_any_cell(tmp_path: Path, text: str) -> None:
    made, rows, rest = settled(tmp_path, methods=["BIGRec"])
    (tmp_path / "cells.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"cells\.json: .* Remove it: finished cells stay"):
        job.run_cells(made, rows, made.seeds, rest, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.json"]


def test_an_error_beside_the_cells_ends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows, rest = settled(tmp_path, methods=["BIGRec", "SPRec"], seeds=[0, 1, 2])
    begun = list[str]()

    def start(command: list[str], log: Any) -> Any:
        begun.append(command[-1])
        if len(begun) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return subprocess.Popen(["sleep", "2"])

    monkeypatch.setattr("rayrec.compare.cells.start", start)
    with pytest.raises(OSError, match="No space left"):
        job.run_cells(made, rows, made.seeds, rest, tmp_path)
    assert begun in (["BIGRec-seed0"], ["BIGRec-seed0", "SPRec-seed0"])  # the second may begin beside the error


def test_a_cell_with_a_path_has_one_folder_and_its_log_may_hold_any_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, rows, rest = settled(tmp_path, methods=["BIGRec", "BIGRec:embedder=sentence,embedder-path=/a/b"])
    fails = [sys.executable, "-c", r"import sys; sys.stdout.buffer.write(b'\xff broke\n'); sys.exit(1)"]
    monkeypatch.setattr(job, "command", lambda *_: fails)
    failed = job.run_cells(made, rows, made.seeds, rest, tmp_path)
    assert failed == dict.fromkeys(
        ["BIGRec-seed0", "BIGRec embedder=sentence embedder-path=_a_b-seed0"], "\N{REPLACEMENT CHARACTER} broke"
    )


def test_a_finished_cell_takes_no_more_time(tmp_path: Path) -> None:
    stopped = account(None, {"seconds": 10.0, "memory": 5, "finished": False}, made=False)
    whole = account(stopped, {"seconds": 4.0, "memory": 7, "finished": True}, made=True)
    assert whole == {"seconds": 14.0, "memory": 7, "finished": True}
    assert account(whole, {"seconds": 3.0, "memory": 9, "finished": True}, made=False) == whole
    assert account(whole, {"seconds": 3.0, "memory": 9, "finished": False}, made=False) == whole
    assert account(whole, {"seconds": 3.0, "memory": 9, "finished": True}, made=True)["seconds"] == 17.0
    before = finished_phases(tmp_path)
    folder = put_cell(tmp_path, "a", {"score": 1})
    assert before == {} and list(finished_phases(folder)) == [str(folder / "00" / "evaluate" / "DONE")]


def test_the_table_says_what_it_is_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["BIGRec", "SASRec", "Caser"]
    made, rows, rest = settled(tmp_path, "--protocol", "candidates", methods=methods, seeds=[0, 1])
    folder = tmp_path / "c"
    for name, hits in (("SASRec", 5), ("Caser", 3)):
        for seed in (0, 1):
            put_cell(folder, f"{name}-seed{seed}", {"score": hits}, f"00/{BASELINES[name]}")
    facts = {"Caser-seed0": {"seconds": 60.0, "memory": 2e9}, "Caser-seed1": {"seconds": 41.0, "memory": 1e9}}
    (folder / "cells.json").write_text(json.dumps(facts))
    failed = {"BIGRec-seed0": "it broke", "BIGRec-seed1": "it broke"}
    write = Path.write_text
    # The encoding of the machine may lack the Δ of the CSV.
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding="ascii": write(path, text, encoding))
    assert job.show(made, rows, rest, folder, failed)
    printed = capsys.readouterr().out
    assert "--against BIGRec has no finished cell; the differences are to SASRec." in printed
    assert "candidates, score, N = 8 × 2 seeds" in printed and "101" in printed and "2.0" in printed
    found = json.loads((folder / "comparison.json").read_text())
    assert (found["against"], found["k"], found["failed"]) == ("SASRec", 1, failed)
    assert [(row["method"], row.get("seconds")) for row in found["rows"]] == [("SASRec", None), ("Caser", 101.0)]


def test_a_dry_run_prints_plans_and_ends_well(tmp_path: Path) -> None:
    words = ["--methods", "SASRec", "--against", "SASRec", "--scale", "toy", "--dry-run", "--runs", str(tmp_path)]
    line = [sys.executable, str(ROOT / "jobs" / "compare.py"), *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "SASRec, the first of 3 seeds" in done.stdout and "rows read" in done.stdout
    assert list(tmp_path.iterdir()) == []
