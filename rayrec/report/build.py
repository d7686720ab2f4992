"""Write ``report.html`` from the files of a run folder: one page, no script, no network.

Rebuild it with ``python -m rayrec.report DIR``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayrec.metrics import FIRST, METRICS
from rayrec.report import figures
from rayrec.report.page import render
from rayrec.report.record import Record, read_run
from rayrec.report.rows import (
    Row,
    best_policy,
    cuts,
    default_k,
    grouped,
    label,
    last_policy,
    number,
    pairs,
    policies,
    shown,
)
from rayrec.report.timeline import Span, overlap, waits

#: Numbers that identify a record; its other whole numbers are counts.
_IDENTITY = {"iteration", "N", "seed", "alpha"}


def build_report(folder: Path) -> Path:
    """Write ``folder/report.html`` and return its path; equal files give equal bytes.

    A run that is not finished gets a report that says so.

    Raises:
        ValueError: a file of the run is missing or damaged; the message names it and the remedy.
    """
    text = render("report.html", **describe(read_run(Path(folder))))
    path = Path(folder) / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def describe(run: Record) -> dict[str, Any]:
    """Return the content of the page as strings, tables and pictures."""
    groups = grouped(run.of("evaluation", "baseline"))
    tests = {title: group for title, group in groups.items() if group[0].get("split", "test") == "test"}
    paths = {title: group for title, group in tests.items() if policies(group)}
    k = default_k([row for group in paths.values() for row in group])
    planned = len(run.plan.get("phases") or [])
    return {
        "name": run.folder.resolve().name,
        "headline": _headline(run),
        "progress": {"done": planned - len(run.to_do), "planned": planned, "next": (run.to_do or [None])[0]},
        "tiles": _tiles(paths, k),
        "facts": _facts(run),
        "results": [_result(title, group, run) for title, group in groups.items()],
        "curves": [_curves(title, group) for title, group in paths.items()],
        "tradeoff": {"title": f"test, k = {k}", "svg": figures.tradeoff(paths, k)} if paths else None,
        "genres": _genres(paths),
        "training": figures.training(run.steps),
        "time": _time(run.phases) if run.phases else None,
        "negatives": _negatives(run),
        "unread": run.unread,
        "samples": sorted(run.samples.items()),
        "counted": _counted(groups),
        "settings": _settings(run),
    }


def _headline(run: Record) -> str:
    groups = run.config.get("config") or run.config
    data, model, train, loss = (groups.get(name) or {} for name in ("data", "model", "train", "loss"))
    tests = sorted({row["N"] for row in run.of("evaluation") if row.get("split", "test") == "test" and "N" in row})
    negatives = train.get("negatives", "–")
    negatives = ", ".join(negatives) if isinstance(negatives, list | tuple) else negatives
    parts = [
        data.get("source"),
        model.get("model"),
        f"{loss['objective']} on {negatives} negatives" if "objective" in loss else None,
        f"K = {train['num_negatives']}" if "num_negatives" in train else None,
        f"{train['iterations']} iterations" if "iterations" in train else None,
        f"seed {run.config.get('seed', data.get('seed', '–'))}",
        f"N = {' and '.join(map(number, tests))} test rows" if tests else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def _facts(run: Record) -> list[tuple[str, str]]:
    best = best_policy(run.rows)
    facts = [
        ("last policy", last_policy(run.rows)),
        ("best on validation", f"{best[0]} ({best[1]})" if best else None),
        ("rows", pairs(run.plan.get("rows") or {})),
        ("counts", pairs(run.plan.get("counts") or {})),
        ("started", f"{run.attempts} times (stopped and resumed)" if run.attempts > 1 else None),
        ("data hash", run.config.get("data_hash")),
        ("versions", pairs(run.config.get("versions") or {})),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _tiles(paths: Mapping[str, Sequence[Row]], k: int) -> dict[str, Any] | None:
    """The metrics of the first kind of lists, from the first to the last policy."""
    for title, group in paths.items():
        first, *_, last = [*policies(group)[:1], *policies(group)]
        keys = [(metric.key(k), metric.arrow) for metric in shown([last], [k])]
        tiles = [(f"{key} {arrow}", number(first.get(key)), number(last.get(key))) for key, arrow in keys]
        note = f"From {label(first)} to {label(last)}" if first is not last else f"Of {label(first)}"
        return {"moved": first is not last, "rows": tiles, "note": f"{note}; {title}. {_noise(last, k)}"}
    return None


def _noise(row: Row, k: int) -> str:
    key, rows = FIRST.key(k), row.get("N")
    share = row.get(key)
    if share is None or not rows:
        return ""
    half = 1.96 * math.sqrt(share * (1 - share) / rows)
    return f"{key} is known to ± {half:.3f} (95 %, binomial, N = {number(rows)}): smaller differences may be noise."


def _result(title: str, group: Sequence[Row], run: Record) -> dict[str, Any]:
    """A table of one group: a row for each policy, for each metric a column per k."""
    ks, best, last = cuts(group), best_policy(run.rows), last_policy(run.rows)
    columns: list[tuple[str, str, dict[str, str]]] = []
    for metric in shown(group, ks):
        heads = {f"@{k}": metric.key(k) for k in ks} if metric.when == "always" else {"": metric.name}
        columns.append((f"{metric.name} {metric.arrow}", metric.unit, heads))
    full = all(row.get(f"filled@{k}", 1) == 1 for row in group for k in ks)
    if not full:
        columns.append(("filled", "share of k·N", {f"@{k}": f"filled@{k}" for k in ks}))
    order = sorted(group, key=lambda row: (row["kind"] != "baseline", row.get("iteration", 0)))
    rows = []
    for row in order:
        policy = row.get("policy")
        marks = {"last": policy == last, "best": best is not None and policy == best[0]}
        rows.append(
            {
                "kind": row["kind"],
                "label": label(row).split(" (")[0] if policy else label(row),
                "policy": policy,
                "badges": [name for name, true in marks.items() if true and policy],
                "cells": [[_decimal(row.get(key)) for key in heads.values()] for _, _, heads in columns],
            }
        )
    note = _noise(order[-1], default_k(group))
    return {"title": title, "columns": columns, "rows": rows, "full": full, "note": note}


def _decimal(value: float | None) -> str:
    return number(None if value is None else float(value))


def _curves(title: str, group: Sequence[Row]) -> dict[str, str]:
    names = dict.fromkeys(label(row) for row in group if row["kind"] == "baseline")
    bars = ", ".join(m.name for m in shown(group, cuts(group)) if m.binomial)
    return {"title": title, "svg": figures.curves(group), "dotted": ", ".join(names), "bars": bars}


def _genres(paths: Mapping[str, Sequence[Row]]) -> dict[str, str] | None:
    for title, group in paths.items():
        ends = {label(row): figures.genre_gaps(row) for row in (policies(group)[0], policies(group)[-1])}
        found = {name: gap for name, gap in ends.items() if gap}
        if found:
            k = next(iter(found.values()))[0]
            gaps = {name: gap for name, (_, gap) in found.items()}
            selected = ", ".join(next(iter(gaps.values())))
            return {"title": f"{title}, k = {k}", "svg": figures.genre_bars(gaps, k), "selected": selected}
    return None


def _time(phases: Sequence[Span]) -> dict[str, Any]:
    total = overlap(phases)
    pauses = {(wait.phase, wait.lane, wait.end): wait for wait in waits(phases)}
    facts = dict.fromkeys(key for span in phases for key, value in span.args.items() if _is_number(value))
    facts = [key for key in facts if not key.endswith("pid")]
    rows = []
    for span in phases:
        wait = pauses.get((span.phase, span.lane, span.start))
        waited = [wait.cause.phase if wait and wait.cause else "", number(wait.seconds, 1) if wait else ""]
        cells = [number(span.args[key], 0) if _is_number(span.args.get(key)) else "" for key in facts]
        rows.append([span.phase, span.lane, *waited, number(span.start, 1), number(span.seconds, 1), *cells])
    names = [fact.replace("_per_s", "/s").replace("_", " ") for fact in facts]
    head = ["phase", "lane", "waited for", "waited s", "start s", "seconds", *names]
    return {"overlap": total, "svg": figures.lanes(phases), "table": {"head": head, "rows": rows, "words": 3}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _negatives(run: Record) -> dict[str, Any] | None:
    rows = run.of("negatives")
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in _IDENTITY]
    keys = [key for key in keys if any(_is_number(row.get(key)) for row in rows)]
    cells = [
        [str(row.get("phase", "–")), str(row.get("sampler", "–")), *(_share(row.get(key)) for key in keys)]
        for row in rows
    ]
    head = ["phase", "sampler", *(key.replace("_", " ") for key in keys)]
    return {"head": head, "rows": cells, "words": 2} if rows else None


def _share(value: Any) -> str:
    """A share in per cent; a count is a whole number."""
    return f"{100 * value:.1f} %" if isinstance(value, float) else number(value)


def _counted(groups: Mapping[str, Sequence[Row]]) -> dict[str, Any] | None:
    rows = [(title, row) for title, group in groups.items() for row in group]
    keys = dict.fromkeys(key for _, row in rows for key, value in row.items() if isinstance(value, int))
    keys = [key for key in keys if key not in _IDENTITY and key.split("@")[0] not in {*METRICS, "filled"}]
    cells = [[title, label(row), *(number(row.get(key)) for key in keys)] for title, row in rows]
    head = ["evaluation", "policy", *(key.replace("_", " ") for key in keys)]
    return {"head": head, "rows": cells, "words": 2} if keys else None


def _settings(run: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = {name: group for name, group in (run.config.get("config") or run.config).items() if name != "versions"}
    return [
        (name, [(key, _setting(value)) for key, value in group.items()])
        for name, group in groups.items()
        if isinstance(group, dict)
    ]


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "–" if value is None else str(value)
