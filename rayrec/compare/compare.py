"""Methods side by side on the same rows: means over seeds, intervals, paired tests.

A cell is a finished run folder: a method and a seed. Metrics of rows are bootstrapped over users, metrics of all lists
have a jackknife over users, and the spread over seeds is given apart: three seeds cannot be bootstrapped.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayrec.compare.cells import At, Cell
from rayrec.metrics import FIRST, METRICS, SAME_AT_1, TRADE_OFFS, Metric
from rayrec.metrics.intervals import Interval, bootstrap_means, holm, jackknife, of_few
from rayrec.report.rows import genre_gaps


def compared(k: int, choices: bool, cold: bool) -> list[At]:
    """The metrics of rows that have intervals: at k, and of a choice from candidates those of the first place.

    ``cold``: also those of targets that training never saw.
    """
    rows = [metric for metric in METRICS.values() if metric.of_rows]
    first = [(FIRST, 1), *((metric, 1) for metric in rows if metric.tested)] if choices else []
    return list(
        dict.fromkeys([*first, *((metric, k) for metric in rows if metric.at_k and (cold or metric.when != "cold"))])
    )


def compare(cells: Sequence[Cell], against: str, k: int) -> list[dict[str, Any]]:
    """One row per method, in the order of their first cells: N, seeds, and for each metric its mean and interval.

    Differences from ``against`` are paired by row, with p-values after Holm's correction over the table, for methods of
    the same seeds. ValueError: ``against`` has no cell, or two methods answered different rows for one seed.
    """
    of: dict[str, list[Cell]] = {cell.method: [] for cell in cells}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        of[cell.method].append(cell)
    if against not in of:
        raise ValueError(f"--against {against} is not among the finished methods {list(of)}. Name one of them.")
    written = [metric.name for metric in METRICS.values() if metric.written]
    choices = any(name in c.record for name in written for c in cells)
    names = compared(k, choices, cold=any(c.record.get("N_cold") for c in cells))
    rows = {method: _row(members, k, names) for method, members in of.items()}
    tested = [method for method in of if method != against and _paired(of[method], of[against])]
    _estimate(rows, of, names)
    _test(rows, of, against, tested, [at for at in names if at != (SAME_AT_1, 1)])
    for metric in METRICS.values():
        if metric.without:
            _jackknife(rows, of, against, tested, metric, k)
    front = pareto([tuple(row[metric.key(k)]["value"] for metric in TRADE_OFFS[0]) for row in rows.values()])
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


def _row(members: list[Cell], k: int, names: list[At]) -> dict[str, Any]:
    """The means of the records over seeds, and their spread."""
    row: dict[str, Any] = {"method": members[0].method, "seeds": [c.seed for c in members]}
    row["N"] = min(c.record["N"] for c in members)
    if any(cold := [c.record.get("N_cold", 0) for c in members]):
        row["N_cold"] = min(cold)
    if alphas := [c.record["alpha"] for c in members if "alpha" in c.record]:
        row["alpha"] = alphas
    keys = dict.fromkeys([*(metric.key(at) for metric, at in names), *(m.key(k) for m in METRICS.values())])
    optional = {metric.key(k) for metric in METRICS.values() if metric.when != "always"}
    for key in keys:
        values: list[Any] = [c.record.get(key) for c in members]
        if key in optional and not all(key in c.record for c in members):
            continue
        row[key] = {"value": None, "low": None, "high": None, "seed_sd": None}
        if None not in values:
            row[key]["value"] = float(np.mean(values))
            row[key]["seed_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    if gaps := [gap for c in members if (gap := genre_gaps(c.record, k))]:
        row["gaps"] = {genre: float(np.mean([gap[genre] for gap in gaps if genre in gap])) for genre in gaps[0]}
    return row


def _estimate(rows: dict[str, dict], of: dict[str, list[Cell]], names: list[At]) -> None:
    """Fill in the means of ``names`` and their intervals; methods of the same rows share the draws."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for method, members in of.items():
        alike[tuple(_users(members))].append(method)
    for users, methods in alike.items():
        values_NM = np.concatenate([_values(of[method], names) for method in methods], axis=1)
        found = bootstrap_means(values_NM, users, seed=0)
        each = ((method, metric.key(k)) for method in methods for metric, k in names)
        for (method, key), one, value_N in zip(each, found, values_NM.T, strict=True):
            if key in rows[method] and one.value is not None:
                rows[method][key] |= _entry(of_few(one, value_N, users))


def _test(rows: dict[str, dict], of: dict[str, list[Cell]], against: str, tested: list[str], names: list[At]) -> None:
    """Fill in the paired differences of ``names`` from ``against``, with p-values after Holm's correction over all.

    Those of cold targets, which are few, have none.
    """
    if not tested:
        return
    base_NM = _values(of[against], names)
    gap_NM = np.concatenate([_values(of[method], names) - base_NM for method in tested], axis=1)
    found = bootstrap_means(gap_NM, _users(of[against]), seed=0)
    each = [(method, metric, metric.key(k)) for method in tested for metric, k in names]
    entries = [
        _entry(one) | ({} if at[1].when == "cold" else {"p": one.p}) for one, at in zip(found, each, strict=True)
    ]
    for entry, (method, _, key) in zip(entries, each, strict=True):
        if entry["value"] is not None:
            rows[method][f"Δ{key}"] = entry
    known = [(entry, p) for entry in entries if (p := entry.get("p")) is not None]
    for (entry, _), p in zip(known, holm([p for _, p in known]), strict=True):
        entry["p_holm"] = float(p)


def _jackknife(
    rows: dict[str, dict], of: dict[str, list[Cell]], against: str, tested: list[str], metric: Metric, k: int
) -> None:
    """Fill in the intervals of a metric of all lists at once, and its paired differences from ``against``."""
    without, key = {method: _without(members, metric, k) for method, members in of.items()}, metric.key(k)

    def interval(
        value: float | None, without_U: np.ndarray, ends: tuple[float, float], *values: float | None
    ) -> dict[str, float | None]:
        few = any(one is not None and one < metric.least for one in values)
        return _entry(Interval(value) if few else jackknife(value, without_U, ends))

    for method, row in rows.items():
        own, base = row[key]["value"], rows[against][key]["value"]
        row[key] |= interval(own, without[method], metric.ends, own)
        if method in tested:
            gap = None if own is None or base is None else own - base
            row[f"Δ{key}"] = interval(gap, without[method] - without[against], metric.change_ends, own, base)


def _entry(found: Interval) -> dict[str, float | None]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _values(members: list[Cell], names: list[At]) -> np.ndarray:
    """The metrics of all rows of all seeds, (N, names).

    Each seed has as many rows, so means are those of seeds. Where some rows do not count, the others weigh alike.
    """
    return np.concatenate([c.values(names) for c in members])


def _users(members: list[Cell]) -> list[str]:
    return [user for c in members for user in c.users]


def _without(members: list[Cell], metric: Metric, k: int) -> np.ndarray:
    """The mean of a metric over seeds without each user of any seed in turn; NaN where a seed has none."""
    everyone = sorted(set(_users(members)))
    means = np.zeros(len(everyone))
    for c in members:
        own = dict(zip(sorted(set(c.users)), c.without(metric, k), strict=True))
        whole = c.record[metric.key(k)]
        means += [own.get(user, np.nan if whole is None else whole) for user in everyone]
    return means / len(members)


def pareto(points: Sequence[tuple[float | None, ...]]) -> list[bool]:
    """Whether no other point is at least as good in both coordinates and better in one; more is better."""
    known = [(x, y) for x, y in points if x is not None and y is not None]
    return [
        x is not None and y is not None and not any(a >= x and b >= y and (a > x or b > y) for a, b in known)
        for x, y in points
    ]
