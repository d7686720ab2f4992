"""Methods side by side on the same rows: means over seeds, intervals, paired tests (METHODS section 8).

A cell is one finished run folder: a method and a seed. Accuracy is bootstrapped over users, DivRatio has a jackknife
over users, and the spread over seeds stands apart, since three seeds cannot be bootstrapped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.folders import read_json
from rayrec.methods import BASELINES
from rayrec.metrics import div_ratio_without, per_row
from rayrec.statistics import bootstrap_mean, holm, jackknife, paired_bootstrap

#: Ways to make lists in protocol A.
OPEN = ("beams", "greedy", "free_beams", "d3")
#: Metrics with an interval from the rows; the others are means over seeds.
ACCURACY = ("HR", "NDCG")
OTHERS = ("DivRatio", "ORRatio", "MGU", "DGU")


@dataclass(frozen=True)
class Cell:
    """The last evaluation of one run on its test rows."""

    method: str
    seed: int
    record: Mapping[str, Any]
    """Its line of metrics.jsonl."""
    predictions: pa.Table
    users: list[str]

    @property
    def ids(self) -> list[str]:
        """The rows that it answered."""
        return self.predictions["example_id"].to_pylist()


def read_cell(folder: Path, method: str, seed: int, decode: str) -> Cell:
    """Read the last evaluation of a run folder; ``Popular`` is every run's own baseline.

    Raises:
        ValueError: the run has not come so far, or did not decode so.
    """
    phases = sorted((path.parent for path in folder.glob("*/evaluate/DONE")), key=lambda path: int(path.parent.name))
    last = phases[-1] if phases else folder
    if method == "Popular":
        last = folder / "00" / "baseline"
    elif method in BASELINES:
        last, decode = folder / "00" / BASELINES[method], "unmasked" if decode in OPEN else "score"
    records = read_json(last / "metrics.json")["records"]
    found = [r for r in records if r["split"] == "test" and (method == "Popular" or r["decode"] == decode)]
    if not found:
        raise ValueError(f"{last}: no evaluation by --decode {decode}. Run the comparison again with it.")
    test = pq.read_table(folder / "examples" / "test.parquet")
    user = dict(zip(test["example_id"].to_pylist(), test["user"].to_pylist(), strict=True))
    made = pq.read_table(last / "predictions.parquet")
    mine = [
        example in user and (method == "Popular" or way == decode)
        for example, way in zip(made["example_id"].to_pylist(), made["decode"].to_pylist(), strict=True)
    ]
    made = made.filter(pa.array(mine))
    return Cell(method, seed, found[0], made, [user[example] for example in made["example_id"].to_pylist()])


def compare(cells: Sequence[Cell], against: str, k: int) -> list[dict[str, Any]]:
    """One row per method, in the order of their first cells: N, seeds, and for each metric its mean and interval.

    Differences from ``against`` are paired by row, with p-values after Holm's correction over the table. They are left
    out where the two methods have not the same seeds.

    Raises:
        ValueError: ``against`` has no cell, or two methods answered different rows for one seed.
    """
    of: dict[str, list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: cell.seed):
        of[cell.method].append(cell)
    of = {cell.method: of[cell.method] for cell in cells}
    if against not in of:
        raise ValueError(f"--against {against} is not among the finished methods {list(of)}. Name one of them.")
    rows = [_row(members, k) for members in of.values()]
    tests: list[tuple[dict, str]] = []
    for row, (method, members) in zip(rows, of.items(), strict=True):
        if method == against or [c.seed for c in members] != [c.seed for c in of[against]]:
            continue
        if [c.ids for c in members] != [c.ids for c in of[against]]:
            raise ValueError(
                f"{method} and {against} answered different rows. Give them the same data and --test-rows."
            )
        for name in ACCURACY:
            own, other = _values(members, name, k), _values(of[against], name, k)
            difference = paired_bootstrap(own, other, _users(members), seed=0)
            row[f"Δ{name}@{k}"] = dict(zip(("value", "low", "high", "p"), difference, strict=True))
            if difference.p is not None:
                tests.append((row[f"Δ{name}@{k}"], name))
    for (entry, _), p in zip(tests, holm([entry["p"] for entry, _ in tests]), strict=True):
        entry["p_holm"] = float(p)
    front = pareto([(row[f"NDCG@{k}"]["value"], row[f"DivRatio@{k}"]["value"]) for row in rows])
    return [row | {"pareto": on} for row, on in zip(rows, front, strict=True)]


def _row(members: list[Cell], k: int) -> dict[str, Any]:
    row: dict[str, Any] = {"method": members[0].method, "seeds": [c.seed for c in members]}
    row["N"] = sorted({c.record["N"] for c in members})[0]
    if alphas := [c.record["alpha"] for c in members if "alpha" in c.record]:
        row["alpha"] = alphas
    for name in ACCURACY:
        interval = bootstrap_mean(_values(members, name, k), _users(members), seed=0)
        row[f"{name}@{k}"] = dict(zip(("value", "low", "high"), interval, strict=True))
    for name in OTHERS:
        values = [c.record[f"{name}@{k}"] for c in members]
        row[f"{name}@{k}"] = {"value": None if None in values else float(np.mean(values)), "low": None, "high": None}
    if row[f"DivRatio@{k}"]["value"] is not None:
        interval = jackknife(row[f"DivRatio@{k}"]["value"], _without(members, k))
        row[f"DivRatio@{k}"] = dict(zip(("value", "low", "high"), interval, strict=True))
    if gaps := [_gaps(c.record, k) for c in members if c.record["genres"].get(f"GP@{k}") and c.record["genres"]["GH"]]:
        row["gaps"] = {genre: float(np.mean([gap[genre] for gap in gaps if genre in gap])) for genre in gaps[0]}
    for name in (*ACCURACY, *OTHERS):
        values = [c.record[f"{name}@{k}"] for c in members]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 and None not in values else None
        row[f"{name}@{k}"]["seed_sd"] = spread
    return row


def _gaps(record: Mapping[str, Any], k: int) -> dict[str, float]:
    """d_g of each genre: its share of the lists minus its share of the histories."""
    genres = record["genres"]
    return {genre: share - genres["GH"][genre] for genre, share in genres[f"GP@{k}"].items()}


def _values(members: list[Cell], name: str, k: int) -> np.ndarray:
    """HR or NDCG of all rows of all seeds; every seed has as many rows, so the mean is that over seeds."""
    return np.concatenate([per_row(c.predictions, k)[ACCURACY.index(name)] for c in members])


def _users(members: list[Cell]) -> list[str]:
    return [user for c in members for user in c.users]


def _without(members: list[Cell], k: int) -> np.ndarray:
    """The mean DivRatio over seeds without each user of any seed in turn."""
    everyone = sorted(set(_users(members)))
    means = np.zeros(len(everyone))
    for c in members:
        own = dict(zip(sorted(set(c.users)), div_ratio_without(c.predictions, c.users, k), strict=True))
        means += [own.get(user, c.record[f"DivRatio@{k}"]) for user in everyone]
    return means / len(members)


def pareto(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Whether no other point is at least as good in both coordinates and better in one; more is better."""
    known = [(x, y) for x, y in points if x is not None and y is not None]
    return [
        x is not None and y is not None and not any(a >= x and b >= y and (a > x or b > y) for a, b in known)
        for x, y in points
    ]
