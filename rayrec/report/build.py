"""Write ``report.html`` from the files of a run folder: one page, no script, no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayrec.metrics import METRICS
from rayrec.report import figures, rows
from rayrec.report.lists import ends
from rayrec.report.page import render
from rayrec.report.record import Record, read_run
from rayrec.report.rows import Row, cuts, default_k, genre_gaps, grouped, label, number, policies, shown
from rayrec.report.timeline import Span, overlap, waits
from rayrec.runs.manifest import write_text

#: Numbers that identify a record; its other whole numbers are counts.
_IDENTITY = {"iteration", "N", "seed", "alpha"}


def build_report(folder: Path) -> Path:
    """Write ``folder/report.html`` and return its path; equal files give equal bytes.

    An unfinished run is reported as such. ValueError: a file is missing or damaged; with its name and the remedy.
    """
    path = Path(folder) / "report.html"
    write_text(path, render("report.html", **describe(read_run(Path(folder)))))
    return path


def describe(run: Record) -> dict[str, Any]:
    """Return the content of the page: the run, its tables and pictures, and the functions that the template calls."""
    groups = grouped(run.of("evaluation", "baseline"))
    tests = {title: group for title, group in groups.items() if group[0].get("split", "test") == "test"}
    paths = {title: group for title, group in tests.items() if policies(group)}
    k = default_k([row for group in paths.values() for row in group])
    negatives = [(str(row.get("phase", "–")), str(row.get("sampler", "–")), row) for row in run.of("negatives")]
    counted = [(title, label(row), row) for title, group in groups.items() for row in group]
    settings = run.config.get("config") or run.config
    return {
        "run": run,
        "name": run.folder.resolve().name,
        "settings": settings,
        "headline": _headline(run, settings),
        "planned": len(run.plan.get("phases") or []),
        "groups": groups,
        "paths": paths,
        "k": k,
        "ends": ends(run.rows),
        "columns": _columns,
        "best_policy": rows.best_policy(run.rows),
        "last_policy": rows.last_policy(run.rows),
        "curves": figures.curves,
        "tradeoff": {"title": f"test, k = {k}", "svg": figures.tradeoff(paths, k)} if paths else None,
        "genres": _genres(paths),
        "training": figures.training(run.steps),
        "time": _time(run.phases) if run.phases else None,
        "negatives": _numbers("phase", "sampler", negatives, int | float),
        "counted": _numbers("evaluation", "policy", counted, int),
    }


def _headline(run: Record, settings: Mapping[str, Any]) -> str:
    data, model, train, loss = (settings.get(name) or {} for name in ("data", "model", "train", "loss"))
    tests = sorted({row["N"] for row in run.of("evaluation") if row.get("split", "test") == "test" and "N" in row})
    parts = [
        data.get("source"),
        model.get("model"),
        f"{loss['objective']} on {', '.join(train['negatives'])} negatives" if "objective" in loss else None,
        f"K = {train['num_negatives']}" if "num_negatives" in train else None,
        f"{train['iterations']} iterations" if "iterations" in train else None,
        f"seed {run.config.get('seed', data.get('seed', '–'))}",
        f"N = {' and '.join(map(number, tests))} test rows" if tests else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def _columns(group: Sequence[Row]) -> list[tuple[str, str, dict[str, str]]]:
    """For each metric of a group its head, its unit, and its keys by the head of their column."""
    ks, columns = cuts(group), []
    for metric in shown(group, ks):
        keys = {f"@{k}": metric.key(k) for k in ks} if metric.at_k else {"": metric.name}
        columns.append((f"{metric.name} {metric.arrow}", metric.unit, keys))
    if any(row.get(f"filled@{k}", 1) != 1 for row in group for k in ks):
        columns.append(("filled", "share of k·N", {f"@{k}": f"filled@{k}" for k in ks}))
    return columns


def _genres(paths: Mapping[str, Sequence[Row]]) -> dict[str, str] | None:
    """The genres of the first and the last policy at the smallest k that has them."""
    for title, group in paths.items():
        for k in cuts(group):
            ends = {label(row): genre_gaps(row, k) for row in (policies(group)[0], policies(group)[-1])}
            if gaps := {name: gap for name, gap in ends.items() if gap}:
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
    names = [fact.replace("_per_s", "/s").replace("peak_memory", "peak_bytes").replace("_", " ") for fact in facts]
    head = ["phase", "lane", "waited for", "waited s", "start s", "seconds", *names]
    return {"overlap": total, "svg": figures.lanes(phases), "table": {"head": head, "rows": rows, "words": 3}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(first: str, second: str, rows: Sequence[tuple[str, str, Row]], kinds: Any) -> dict[str, Any] | None:
    """A table of rows with two names and all their counts or shares of ``kinds``; shares are in per cent."""
    keys = dict.fromkeys(key for *_, row in rows for key, value in row.items() if isinstance(value, kinds))
    keys = [key for key in keys if key not in _IDENTITY and key.split("@")[0] not in {*METRICS, "filled"}]

    def cell(value: Any) -> str:
        return f"{100 * value:.1f} %" if isinstance(value, float) else number(value)

    cells = [[*names, *(cell(row.get(key)) for key in keys)] for *names, row in rows]
    head = [first, second, *(key.replace("_", " ") for key in keys)]
    return {"head": head, "rows": cells, "words": 2} if keys else None
