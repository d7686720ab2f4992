"""Methods side by side on the same rows: means over seeds, intervals, paired tests.

A cell is one finished run folder: a method and a seed. Accuracy is bootstrapped over users, DivRatio and ORRatio have a
jackknife over users, and the spread over seeds stands apart, since three seeds cannot be bootstrapped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.methods import BASELINES
from rayrec.metrics import div_ratio_without, or_ratio_without, per_row
from rayrec.metrics.intervals import bootstrap_means, holm, jackknife, paired_bootstrap
from rayrec.runs.manifest import read_json

#: Metrics with an interval from the rows; the others are means over seeds.
ACCURACY = ("HR", "NDCG")
OTHERS = ("DivRatio", "ORRatio", "MGU", "DGU")
#: Those of a choice from candidates, where the records have them.
CHOICE = ("ValidRatio", "AdherenceRate", "AvoidanceRate", "HR@1_liked")


@dataclass(frozen=True)
class Cell:
    """The last evaluation of one run on its test rows."""

    method: str
    seed: int
    record: Mapping[str, Any]
    """Its metrics."""
    predictions: pa.Table
    users: list[str]

    @property
    def ids(self) -> list[str]:
        """The rows that it answered."""
        return self.predictions["example_id"].to_pylist()


def read_cell(folder: Path, method: str, seed: int, decodes: Sequence[str]) -> Cell:
    """Read the last evaluation of a run folder; ``Popular`` is every run's own baseline.

    The first of ``decodes`` makes the lists. The ValidRatio is that of ``greedy`` where there is one.

    Raises:
        ValueError: the run has not come so far, or did not decode so.
    """
    phases = sorted((path.parent for path in folder.glob("*/evaluate/DONE")), key=lambda path: int(path.parent.name))
    last, decode = phases[-1] if phases else folder, decodes[0]
    if method == "Popular":
        last, decode = folder / "00" / "baseline", "popular"
    elif method in BASELINES:
        last = folder / "00" / BASELINES[method]
    if not (last / "metrics.json").exists():
        raise ValueError(f"{folder}: no evaluation is finished. Run the comparison again.")
    records = {(r["split"], r.get("decode", "popular")): r for r in read_json(last / "metrics.json")["records"]}
    if ("test", decode) not in records:
        raise ValueError(
            f"{last}: no evaluation by --decode {decode}. Take another --name, and run it again with that."
        )
    record = dict(records["test", decode])
    if written := records.get(("test", "greedy")):
        record |= {"ValidRatio": written["ValidRatio"]} if "ValidRatio" in written else {}
    if adherence := records.get(("adherence", decode)):
        record["AdherenceRate"] = adherence["AdherenceRate"]
    test = pq.read_table(folder / "examples" / "test.parquet")
    user = dict(zip(test["example_id"].to_pylist(), test["user"].to_pylist(), strict=True))
    made = pq.read_table(last / "predictions.parquet")
    ids, ways = made["example_id"].to_pylist(), made["decode"].to_pylist()
    made = made.filter(pa.array([one in user and way == decode for one, way in zip(ids, ways, strict=True)]))
    return Cell(method, seed, record, made, [user[example] for example in made["example_id"].to_pylist()])


def finished_phases(cell: Path) -> dict[str, int]:
    """The finished phases of a cell, and when each was."""
    return {str(path): path.stat().st_mtime_ns for path in cell.glob("*/*/DONE")}


def account(known: dict[str, Any] | None, attempt: dict[str, Any], made: bool) -> dict[str, Any]:
    """What all attempts at a cell took, ``known`` and this one, which ``made`` a phase or did not.

    A finished cell is started again so that other settings are refused, and that start is no part of it.
    """
    if known is None:
        return attempt
    if known.get("finished") and not made:
        return known
    both = {"seconds": known["seconds"] + attempt["seconds"], "memory": max(known["memory"], attempt["memory"])}
    return both | {"finished": attempt["finished"]}


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
    # Of a choice from candidates HR@1 is told whatever k is.
    first = [("HR", 1)] if any("ValidRatio" in cell.record for cell in cells) else []
    names = list(dict.fromkeys([*first, *((name, k) for name in ACCURACY)]))
    rows = {method: _row(members, k, names) for method, members in of.items()}
    tested = [method for method in of if method != against and _paired(of[method], of[against])]
    _accuracy(rows, of, names)
    _tests(rows, of, against, tested, [one for one in names if one != ("NDCG", 1)])  # NDCG@1 is HR@1
    for name in _WITHOUT:
        _diversity(rows, of, against, tested, name, k)
    front = pareto([(row[f"NDCG@{k}"]["value"], row[f"DivRatio@{k}"]["value"]) for row in rows.values()])
    return [row | {"pareto": on} for row, on in zip(rows.values(), front, strict=True)]


def _paired(members: list[Cell], against: list[Cell]) -> bool:
    if [c.seed for c in members] != [c.seed for c in against]:
        return False
    if [c.ids for c in members] != [c.ids for c in against]:
        raise ValueError(
            f"{members[0].method} and {against[0].method} answered different rows. Give them the same data and "
            "--test-rows."
        )
    return True


def _row(members: list[Cell], k: int, names: list[tuple[str, int]]) -> dict[str, Any]:
    """The means of the records over seeds, and their spread."""
    row: dict[str, Any] = {"method": members[0].method, "seeds": [c.seed for c in members]}
    row["N"] = sorted({c.record["N"] for c in members})[0]
    if alphas := [c.record["alpha"] for c in members if "alpha" in c.record]:
        row["alpha"] = alphas
    choice = [name for name in CHOICE if all(name in c.record for c in members)]
    for name in (*(f"{name}@{at}" for name, at in names), *(f"{name}@{k}" for name in OTHERS), *choice):
        values: list[Any] = [c.record.get(name) for c in members]
        row[name] = {"value": None, "low": None, "high": None, "seed_sd": None}
        if None not in values:
            row[name]["value"] = float(np.mean(values))
            row[name]["seed_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    if gaps := [_gaps(c.record, k) for c in members if c.record["genres"].get(f"GP@{k}") and c.record["genres"]["GH"]]:
        row["gaps"] = {genre: float(np.mean([gap[genre] for gap in gaps if genre in gap])) for genre in gaps[0]}
    return row


def _gaps(record: Mapping[str, Any], k: int) -> dict[str, float]:
    """d_g of each genre: its share of the lists minus its share of the histories."""
    genres = record["genres"]
    return {genre: share - genres["GH"][genre] for genre, share in genres[f"GP@{k}"].items()}


def _accuracy(rows: dict[str, dict], of: dict[str, list[Cell]], names: list[tuple[str, int]]) -> None:
    """Fill in the means of ``names`` and their intervals; methods of the same rows share the draws."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for method, members in of.items():
        alike[tuple(_users(members))].append(method)
    for users, methods in alike.items():
        values_NM = np.concatenate([_values(of[method], names) for method in methods], axis=1)
        found = iter(bootstrap_means(values_NM, users, seed=0))
        for method in methods:
            for name, k in names:
                rows[method][f"{name}@{k}"] |= dict(zip(("value", "low", "high"), next(found), strict=True))


def _tests(
    rows: dict[str, dict], of: dict[str, list[Cell]], against: str, tested: list[str], names: list[tuple[str, int]]
) -> None:
    """Fill in the paired differences of ``names`` from ``against``, with p-values after Holm's correction over all."""
    if not tested:
        return
    own_NM = np.concatenate([_values(of[method], names) for method in tested], axis=1)
    other_NM = np.tile(_values(of[against], names), len(tested))
    found = paired_bootstrap(own_NM, other_NM, _users(of[against]), seed=0)
    entries = []
    for (method, (name, k)), one in zip(((m, n) for m in tested for n in names), found, strict=True):
        entries.append(dict(zip(("value", "low", "high", "p"), one, strict=True)))
        rows[method][f"Δ{name}@{k}"] = entries[-1]
    known = [entry for entry in entries if entry["p"] is not None]
    for entry, p in zip(known, holm([entry["p"] for entry in known]), strict=True):
        entry["p_holm"] = float(p)


def _diversity(
    rows: dict[str, dict], of: dict[str, list[Cell]], against: str, tested: list[str], name: str, k: int
) -> None:
    """Fill in the jackknife intervals of a metric of all lists at once, and its paired differences from ``against``."""
    without = {method: _without(members, name, k) for method, members in of.items()}
    key = f"{name}@{k}"
    for method, row in rows.items():
        row[key] |= _interval(row[key]["value"], without[method])
        if method in tested:
            pair = row[key]["value"], rows[against][key]["value"]
            gap = None if None in pair else pair[0] - pair[1]
            row[f"Δ{key}"] = {"value": gap} | _interval(gap, without[method] - without[against])


def _values(members: list[Cell], names: list[tuple[str, int]]) -> np.ndarray:
    """HR@k or NDCG@k of all rows of all seeds, (N, names); each seed has as many rows, so means are those of seeds."""
    columns = [np.concatenate([per_row(c.predictions, k)[ACCURACY.index(name)] for c in members]) for name, k in names]
    return np.stack(columns, axis=1)


def _users(members: list[Cell]) -> list[str]:
    return [user for c in members for user in c.users]


#: Metrics of all lists at once, and what gives them without each user.
_WITHOUT: dict[str, Callable[[pa.Table, list[str], int], np.ndarray]] = {
    "DivRatio": div_ratio_without,
    "ORRatio": or_ratio_without,
}


def _without(members: list[Cell], name: str, k: int) -> np.ndarray:
    """The mean of a metric over seeds without each user of any seed in turn; NaN where a seed has none."""
    everyone = sorted(set(_users(members)))
    means = np.zeros(len(everyone))
    for c in members:
        own = dict(zip(sorted(set(c.users)), _WITHOUT[name](c.predictions, c.users, k), strict=True))
        whole = c.record[f"{name}@{k}"]
        means += [own.get(user, np.nan if whole is None else whole) for user in everyone]
    return means / len(members)


def _interval(value: float | None, without: np.ndarray) -> dict[str, float | None]:
    found = jackknife(value, without)
    return {"low": found.low, "high": found.high}


def pareto(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Whether no other point is at least as good in both coordinates and better in one; more is better."""
    known = [(x, y) for x, y in points if x is not None and y is not None]
    return [
        x is not None and y is not None and not any(a >= x and b >= y and (a > x or b > y) for a, b in known)
        for x, y in points
    ]
