"""The comparison's numbers against plain loops, and its pages."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec import comparison_page
from rayrec.comparison import Cell, compare, pareto
from rayrec.data import schema
from rayrec.published import published

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
    record |= {"HR@5": float(np.mean([r["target"] in r["titles"] for r in rows])), "ORRatio@5": 0.5, "DGU@5": None}
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


def test_the_jackknife_is_over_the_users_of_all_seeds() -> None:
    row = compare(CELLS[:3], "BIGRec", 5)[0]["DivRatio@5"]
    without = []
    for user in sorted({user for c in CELLS[:3] for user in c.users}):
        ratios = []
        for c in CELLS[:3]:
            lists = [t for t, u in zip(c.predictions["titles"].to_pylist(), c.users, strict=True) if u != user]
            ratios.append(len({t for one in lists for t in one}) / sum(map(len, lists)))
        without.append(np.mean(ratios))
    n = len(without)
    half = 1.959964 * np.sqrt((n - 1) / n * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert (row["low"], row["high"]) == pytest.approx((row["value"] - half, row["value"] + half), rel=1e-5)


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
    page = comparison_page.page(rows, published("../data/sprec/Goodreads"), 5, "BIGRec", "T & U", "about")
    assert "T &amp; U" in page and '<td class="word policy">&lt;b&gt;' in page and "<b>" not in page
    assert "0.0310" in page and "not ours" in page and page.count("<svg") == 2
    lines = list(csv.DictReader(io.StringIO(comparison_page.as_csv(rows))))
    assert [line["method"] for line in lines] == ["BIGRec", "SPRec", "RW", "<b>"]
    assert float(lines[1]["HR@5.value"]) == pytest.approx(rows[1]["HR@5"]["value"])
    assert lines[0]["ΔHR@5.p_holm"] == "" and lines[1]["seeds"] == "0 1 2"


def test_a_varied_setting_is_drawn() -> None:
    cells = [cell(f"SPRec beta={value:g}", seed, value / 2) for value in (0.1, 0.5, 1.0) for seed in (0, 1)]
    rows = compare([*(c for c in CELLS[:2]), *cells], "BIGRec", 5)
    for row in rows[1:]:
        row["varied"] = {"method": "SPRec", "value": float(row["method"].split("=")[1])}
    page = comparison_page.page(rows, [], 5, "BIGRec", "t", "about", "beta")
    assert "<h2>Effect of beta</h2>" in page and page.count("<svg") == 3


def test_published_rows_are_of_the_papers_data_only() -> None:
    assert {row["method"] for row in published("/x/sprec/MovieLens/")} >= {"BIGRec", "SPRec", "D3"}
    assert {row["N"] for row in published("MovieLens")} == {980}
    assert published("movielens-100k") == [] and published("") == []
