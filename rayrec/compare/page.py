"""A comparison for people: a table for the terminal, a CSV, and one page without script or network."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rayrec.compare.compare import compared
from rayrec.metrics import FIRST, METRICS, SAME_AT_1, TRADE_OFFS
from rayrec.report import figures
from rayrec.report.figures.drawing import BARS
from rayrec.report.page import render
from rayrec.report.rows import Row


def table(rows: Sequence[Row], k: int, against: str, wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the comparison as text; ``wide`` adds differences and intervals of metrics of all lists."""
    first = [at for at in compared(k, choices=True, cold=True) if at != (SAME_AT_1, 1)]
    rowwise = [metric.key(at) for metric, at in first]
    columns: dict[str, Callable[[Row], str]] = {"method": _name}
    columns["N cold"] = lambda row: f"{row['N_cold']:,}" if row.get("N_cold") else "–"
    axes = {metric.key(k) for metric in TRADE_OFFS[0]}
    for key in dict.fromkeys([*rowwise, *(m.key(k) for m in METRICS.values() if (m, k) != (SAME_AT_1, 1))]):
        inside = wide or key in rowwise or key in axes
        columns[key] = lambda row, key=key, inside=inside: _estimate(row.get(key), inside)
    jackknifed = [metric.key(k) for metric in METRICS.values() if metric.without]
    for key in (*rowwise, *(jackknifed if wide else [])):
        columns[f"Δ{key.removesuffix(f'@{k}')} to {against}"] = lambda row, key=key: _difference(row.get(f"Δ{key}"))
    columns["seconds"] = lambda row: f"{row['seconds']:,.0f}" if row.get("seconds") else "–"
    columns["memory, GB"] = lambda row: f"{row['memory'] / 1e9:.1f}" if row.get("memory") else "–"
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    filled = {name: column for name, column in cells.items() if set(column) != {"–"}}
    return list(filled), [list(line) for line in zip(*filled.values(), strict=True)]


def page(
    rows: Sequence[Row], published: Sequence[Row], k: int, against: str, title: str, subtitle: str, setting: str = ""
) -> str:
    """The page as HTML; every text in it is escaped. ``setting``: the one that rows with ``varied`` differ in."""
    head, lines = table(rows, k, against, wide=True)
    # The baseline of the data goes last.
    ordered = sorted(rows, key=lambda row: row["method"] == "Popular")
    gaps = {row["method"]: row["gaps"] for row in ordered if row.get("gaps")}
    metrics = METRICS.values()
    return render(
        "comparison.html",
        title=title,
        subtitle=subtitle,
        against=against,
        bootstrapped=" and ".join(m.name for m in metrics if m.of_rows and m.when == "always"),
        jackknifed=" and ".join(m.name for m in metrics if m.without),
        front=" and ".join(metric.name for metric in TRADE_OFFS[0]),
        cold=" and ".join(m.name for m in metrics if m.when == "cold" and any(m.key(k) in row for row in rows)),
        written=" and ".join(m.name for m in metrics if m.written and any(m.name in row for row in rows)),
        tables=[{"title": subtitle, "head": head, "rows": lines}, *_published(published, k)],
        points=figures.methods(rows, k),
        setting=setting,
        effect=figures.effect(rows, setting, k) if setting else "",
        bars=figures.genre_bars(dict(list(gaps.items())[: len(BARS)]), k) if len(gaps) > 1 else "",
        unseen=max(0, len(gaps) - len(BARS)),
    )


def _published(rows: Sequence[Row], k: int) -> list[dict[str, Any]]:
    """A table of each source, of the metrics that ours has."""
    keys = dict.fromkeys([FIRST.key(1), *(metric.key(k) for metric in METRICS.values())])
    made = []
    for source in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == source]
        names = [key for key in keys if key in mine[0]]
        lines = [[row["method"], str(row["N"] or "–"), *(f"{row[name]:.4f}" for name in names)] for row in mine]
        if names:
            made.append({"title": f"Published ({source}): not ours", "head": ["method", "N", *names], "rows": lines})
    return made


def as_csv(rows: Sequence[Row]) -> str:
    """One line per method; a nested value has its column named with a dot."""
    flat = [dict(_flat(row)) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(row: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", " ".join(map(str, value)) if isinstance(value, list) else value


def _name(row: Row) -> str:
    chosen = [f"α {alpha:g}" for alpha in row.get("alpha", [])] + [f"{k} {v}" for k, v in row.get("tuned", {}).items()]
    return f"{row['method']}{' ●' if row.get('pareto') else ''}" + (f" ({', '.join(chosen)})" if chosen else "")


def _estimate(entry: Row | None, inside: bool) -> str:
    if entry is None or entry["value"] is None:
        return "–"
    spread = "" if entry["seed_sd"] is None else f" ±{entry['seed_sd']:.4f}"
    return f"{entry['value']:.4f}{_interval(entry, '.4f') if inside else ''}{spread}"


def _difference(entry: Row | None) -> str:
    """A difference with its p-value where it was tested, else with its interval."""
    if entry is None or entry["value"] is None:
        return "–"
    p = entry.get("p_holm")
    shown = "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{entry['value']:+.4f}{f', p {shown}' if 'p' in entry else _interval(entry, '+.4f')}"


def _interval(entry: Row, form: str) -> str:
    return "" if entry["low"] is None else f" [{entry['low']:{form}}, {entry['high']:{form}}]"
