"""Write ``report.html`` from the files of a run folder: one page, no script, no network.

Rebuild it with ``python -m rayrec.report DIR``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrec.report import figures
from rayrec.report.terminal import cuts, default_k, grouped, label, number
from rayrec.report.timeline import Span, overlap, spans, waits
from rayrec.runs.manifest import read_json

Row = Mapping[str, Any]
#: Keys of an evaluation that say what it is; every other whole number in it is a count.
_IDENTITY = {
    "kind",
    "phase",
    "iteration",
    "policy",
    "model",
    "decode",
    "embedder",
    "split",
    "N",
    "genres",
    "seed",
    "alpha",
}
#: Remedy of a damaged file that the run itself writes.
_AGAIN = "Remove it and run the same command again: finished phases are kept."

#: What follows from samples that cannot be read.
_WITHOUT = "The samples of this iteration are left out."


@dataclass(frozen=True)
class Record:
    """What a run folder holds: its files, read and checked."""

    folder: Path
    config: dict[str, Any]
    plan: dict[str, Any]
    rows: list[dict[str, Any]]
    steps: dict[str, list[dict[str, Any]]]
    phases: list[Span]
    attempts: int
    samples: dict[str, list[dict[str, Any]]]
    unread: list[str]
    """Why samples of an iteration are left out."""
    done: list[str]
    to_do: list[str]

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """The metric rows of some kinds, in the order of the run."""
        return [row for row in self.rows if row["kind"] in kinds]


def build_report(folder: Path) -> Path:
    """Write ``folder/report.html`` and return its path; equal files give equal bytes.

    A run that is not finished gets a report that says so.

    Raises:
        ValueError: a file of the run is missing or damaged; the message names it and the remedy.
    """
    from jinja2 import Environment

    from rayrec.report.page import PAGE, STYLE

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    text = page.render(style=STYLE, **describe(read_run(Path(folder))))
    path = Path(folder) / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def read_run(folder: Path) -> Record:
    """Read a run folder.

    Raises:
        ValueError: as :func:`build_report`.
    """
    config, plan = _json(folder / "config.json", dict), _json(folder / "plan.json", dict)
    finished = {str(path.parent.relative_to(folder)) for path in folder.glob("*/*/DONE")}
    planned = [str(row["phase"]) for row in plan.get("phases") or [] if "phase" in row]
    done = [phase for phase in planned if phase in finished] + sorted(finished - set(planned))
    to_do = [phase for phase in planned if phase not in finished]
    trace = _json(folder / "trace.json", dict) if not to_do or (folder / "trace.json").exists() else {}
    try:
        phases = spans(trace.get("traceEvents") or [])
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'trace.json'}: {error} {_AGAIN}") from error
    metrics = {phase: _json(folder / phase / "metrics.json", dict) for phase in done}
    steps = {phase: found["steps"] for phase, found in metrics.items() if found.get("steps")}
    samples, unread = {}, []
    for phase in done:
        path = folder / phase.split("/")[0] / "samples.json"
        if phase.endswith("/prefer") and (path.exists() or not to_do):
            try:
                samples[phase.split("/")[0]] = read_samples(path)
            except ValueError as error:
                unread.append(str(error))
    recorded = any(found.get("records") for found in metrics.values())
    rows = _lines(folder / "metrics.jsonl") if recorded or (folder / "metrics.jsonl").exists() else []
    attempts = len(trace.get("attempts") or [])
    return Record(folder, config, plan, rows, steps, phases, attempts, samples, unread, done, to_do)


def _json(path: Path, kind: type) -> Any:
    value = read_json(path)
    if not isinstance(value, kind):
        raise ValueError(f"{path}: found a {type(value).__name__}, wanted a JSON {kind.__name__}. {_AGAIN}")
    return value


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read the rows of an iteration that were kept for people; no number depends on them.

    Raises:
        ValueError: the file is missing or damaged, and nothing writes it again.
    """
    rows = read_json(path, remedy=_WITHOUT)
    if not isinstance(rows, list) or not all(map(_is_sample, rows)):
        raise ValueError(f"{path}: wanted a list of {{example_id, history, chosen, rejected}}. {_WITHOUT}")
    return rows


def _is_sample(row: Any) -> bool:
    return (
        isinstance(row, dict) and "chosen" in row and all(isinstance(row.get(k), list) for k in ("history", "rejected"))
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}), though phases are finished. {_AGAIN}") from error
    rows = []
    for at, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {at}: not readable as JSON ({error}). {_AGAIN}") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise ValueError(f"{path}, line {at}: found {line[:80]!r}, wanted an object with a kind. {_AGAIN}")
        rows.append(row)
    return rows


def last_policy(rows: Sequence[Row]) -> str | None:
    """Return the policy of the highest iteration among evaluations, or None where there is none."""
    found = [row for row in rows if row.get("kind") == "evaluation"]
    return max(found, key=lambda row: row.get("iteration", 0))["policy"] if found else None


def best_policy(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Return (policy, on what) of the best policy on validation, or None where none was evaluated there.

    Best is the largest NDCG at the largest k, in the first kind of decoding and grounding; the earlier one of equals.
    """
    found = [row for row in rows if row.get("kind") == "evaluation" and row.get("split") == "valid"]
    if not found:
        return None
    title, group = next(iter(grouped(found).items()))
    key = f"NDCG@{cuts(group)[-1]}" if cuts(group) else ""
    known = [row for row in group if row.get(key) is not None]
    if not known:
        return None
    best = max(known, key=lambda row: (row[key], -row.get("iteration", 0)))
    return best["policy"], f"{key} {number(float(best[key]))}; {title}"


def describe(run: Record) -> dict[str, Any]:
    """Return what the page shows, as strings, tables and pictures."""
    groups = grouped(run.of("evaluation", "baseline"))
    tests = {title: group for title, group in groups.items() if group[0].get("split", "test") == "test"}
    paths = {title: g for title, g in tests.items() if any(row["kind"] == "evaluation" for row in g)}
    k = default_k([row for group in paths.values() for row in group])
    planned, following = len(run.plan.get("phases") or []), (run.to_do or ["–"])[0]
    unfinished = f"{planned - len(run.to_do)} of {planned} phases are done; next is {following}. "
    return {
        "name": run.folder.resolve().name,
        "headline": _headline(run),
        "unfinished": run.to_do and unfinished + "Run the same command again to go on.",
        **_tiles(paths, k),
        "facts": _facts(run),
        "results": [_result(title, group, run) for title, group in groups.items()],
        "curves": [_curves(title, group) for title, group in paths.items()],
        "tradeoff": {"title": f"test, k = {k}", "svg": figures.tradeoff(paths, k)} if paths else None,
        "genres": _genres(paths),
        "training": figures.training(run.steps),
        "time": _time(run.phases) if run.phases else None,
        "negatives": _negatives(run),
        "unread": run.unread,
        "samples": [{"iteration": name, "rows": rows} for name, rows in sorted(run.samples.items())],
        "counted": _counted(groups),
        "settings": _settings(run),
    }


def _settings_of(run: Record) -> dict[str, Any]:
    return run.config.get("config") or run.config


def _headline(run: Record) -> str:
    groups = _settings_of(run)
    data, model, train = (groups.get(name) or {} for name in ("data", "model", "train"))
    tests = sorted({row["N"] for row in run.of("evaluation") if row.get("split", "test") == "test" and "N" in row})
    parts = [
        data.get("source"),
        model.get("model"),
        f"{train['objective']} on {train['negatives']} negatives" if {"negatives", "objective"} <= set(train) else None,
        f"K = {train['num_negatives']}" if "num_negatives" in train else None,
        f"{train['iterations']} iterations" if "iterations" in train else None,
        f"seed {run.config.get('seed', data.get('seed', '–'))}",
        f"N = {' and '.join(map(number, tests))} test rows" if tests else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def _facts(run: Record) -> list[tuple[str, str]]:
    best, last = best_policy(run.rows), last_policy(run.rows)
    facts = [
        ("last policy", last),
        ("best on validation", f"{best[0]} ({best[1]})" if best else None),
        ("rows", _pairs(run.plan.get("rows") or {})),
        ("counts", _pairs(run.plan.get("counts") or {})),
        ("started", f"{run.attempts} times (stopped and resumed)" if run.attempts > 1 else None),
        ("data hash", run.config.get("data_hash")),
        ("versions", _pairs(run.config.get("versions") or {})),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in values.items())


def _tiles(paths: Mapping[str, Sequence[Row]], k: int) -> dict[str, Any]:
    if not paths:
        return {"tiles": []}
    title, group = next(iter(paths.items()))
    policies = sorted((r for r in group if r["kind"] == "evaluation"), key=lambda row: row.get("iteration", 0))
    first, last = policies[0], policies[-1]
    tiles = [
        {
            "name": f"{name}@{k} {better}",
            "first": number(first.get(f"{name}@{k}")) if first is not last else None,
            "last": number(last.get(f"{name}@{k}")),
        }
        for name, better in figures.METRICS.items()
        if f"{name}@{k}" in last
    ]
    note = f"From {label(first)} to {label(last)}" if first is not last else f"Of {label(first)}"
    return {"tiles": tiles, "tiles_note": f"{note}; {title}. {_noise(last, k)}"}


def _noise(row: Row, k: int) -> str:
    share, rows = row.get(f"HR@{k}"), row.get("N")
    if share is None or not rows:
        return ""
    half = 1.96 * math.sqrt(share * (1 - share) / rows)
    return f"HR@{k} is known to ± {half:.3f} (95 %, binomial, N = {number(rows)}): smaller differences may be noise."


def _result(title: str, group: Sequence[Row], run: Record) -> dict[str, Any]:
    ks, best, last = cuts(group), best_policy(run.rows), last_policy(run.rows)
    order = sorted(group, key=lambda row: (row["kind"] != "baseline", row.get("iteration", 0)))
    shown = [name for name in figures.METRICS if any(f"{name}@{k}" in row for row in group for k in ks)]
    full = all(row.get(f"filled@{k}", 1) == 1 for row in group for k in ks)
    if not full:
        shown.append("filled")
    rows = []
    for row in order:
        policy = row.get("policy")
        marks = [("last", policy == last), ("best", best is not None and policy == best[0])]
        rows.append(
            {
                "kind": row["kind"],
                "label": label(row).split(" (")[0] if policy else label(row),
                "policy": policy,
                "badges": [mark for mark, true in marks if true and policy],
                "cells": [number(_float(row.get(f"{name}@{k}"))) for name in shown for k in ks],
            }
        )
    places = "every list is full" if full else "filled: items returned, as a share of k·N"
    note = f"↑ more is better, ↓ less is better; best: on validation; {places}. "
    heads = [f"{name} {figures.METRICS.get(name, '')}" for name in shown]
    return {
        "title": title,
        "cuts": ks,
        "heads": heads,
        "rows": rows,
        "note": note + _noise(order[-1], default_k(group)),
    }


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _curves(title: str, group: Sequence[Row]) -> dict[str, str]:
    names = dict.fromkeys(label(row) for row in group if row["kind"] == "baseline")
    return {"title": title, "svg": figures.curves(group), "dotted": ", ".join(names)}


def _genres(paths: Mapping[str, Sequence[Row]]) -> dict[str, str] | None:
    for title, group in paths.items():
        policies = sorted((r for r in group if r["kind"] == "evaluation"), key=lambda row: row.get("iteration", 0))
        ends = {label(row): figures.genre_gaps(row) for row in (policies[0], policies[-1])}
        found = {name: gap for name, gap in ends.items() if gap}
        if found:
            k = next(iter(found.values()))[0]
            gaps = {name: gap[1] for name, gap in found.items()}
            selected = ", ".join(next(iter(gaps.values())))
            return {"title": f"{title}, k = {k}", "svg": figures.genre_bars(gaps, k), "selected": selected}
    return None


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> dict[str, Any]:
    return {"head": list(head), "rows": [list(row) for row in rows], "words": words}


def _time(phases: Sequence[Span]) -> dict[str, Any]:
    total = overlap(phases)
    pauses = {(wait.phase, wait.lane, wait.end): wait for wait in waits(phases)}
    facts = list(dict.fromkeys(key for span in phases for key, value in span.args.items() if _is_number(value)))
    facts = [key for key in facts if not key.endswith("pid")]
    rows = []
    for span in phases:
        wait = pauses.get((span.phase, span.lane, span.start))
        waited = [wait.cause.phase if wait and wait.cause else "", number(wait.seconds, 1) if wait else ""]
        cells = [number(span.args[key], 0) if _is_number(span.args.get(key)) else "" for key in facts]
        rows.append([span.phase, span.lane, *waited, number(span.start, 1), number(span.seconds, 1), *cells])
    names = [fact.replace("_per_s", "/s").replace("_", " ") for fact in facts]
    head = ["phase", "lane", "waited for", "waited s", "start s", "seconds", *names]
    sentence = (
        f"At least one lane worked for {number(total.working, 1)} s, two at once for {number(total.together, 1)} s "
        f"({100 * total.together / (total.working or 1):.0f} %): {total.lanes:.2f} lanes at work on average. The gain "
        "over --sequential is the ratio of the two runs' wall times, which one run cannot show."
    )
    return {"sentence": sentence, "svg": figures.lanes(phases), "table": _table(head, rows, words=3)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _negatives(run: Record) -> dict[str, Any] | None:
    rows = run.of("negatives")
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in _IDENTITY]
    keys = [key for key in keys if any(_is_number(row.get(key)) for row in rows)]
    cells = [
        [*(str(row.get(word, "–")) for word in ("phase", "sampler")), *(_share(row.get(key)) for key in keys)]
        for row in rows
    ]
    return _table(["phase", "sampler", *(key.replace("_", " ") for key in keys)], cells, words=2) if rows else None


def _share(value: Any) -> str:
    """A share in per cent; counts are whole numbers and stay what they are."""
    return f"{100 * value:.1f} %" if isinstance(value, float) else number(value)


def _counted(groups: Mapping[str, Sequence[Row]]) -> dict[str, Any] | None:
    rows = [(title, row) for title, group in groups.items() for row in group]
    keys = dict.fromkeys(key for _, row in rows for key, value in row.items() if isinstance(value, int))
    keys = [key for key in keys if key not in _IDENTITY and key.split("@")[0] not in (*figures.METRICS, "filled")]
    cells = [[title, label(row), *(number(row.get(key)) for key in keys)] for title, row in rows]
    return _table(["evaluation", "policy", *(key.replace("_", " ") for key in keys)], cells, words=2) if keys else None


def _settings(run: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    groups = {
        name: value for name, value in _settings_of(run).items() if isinstance(value, dict) and name != "versions"
    }
    return [(name, [(key, _setting(value)) for key, value in group.items()]) for name, group in groups.items()]


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value)
