"""What a comparison shows: a table for the terminal, a CSV, and one page without script or network."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rayrec import figures

Row = Mapping[str, Any]

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>{{ style|safe }}</style></head><body>
<h1>{{ title }}</h1><p class="quiet">{{ subtitle }}</p>
<h2>Methods</h2>
<p class="quiet">Mean over seeds. In brackets the 95 % interval: a bootstrap over users for HR and NDCG, a jackknife
over users for DivRatio. After ± the standard deviation over seeds. p: paired bootstrap against {{ against }}, after
Holm's correction over the table. ● lies on the Pareto front of NDCG and DivRatio.</p>
{% for table in tables %}<h3>{{ table.title }}</h3><div class="scroll"><table class="wide"><thead><tr>
{% for name in table.head %}<th{% if loop.first %} class="word"{% endif %}>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>
{% for cell in row %}<td{% if loop.first %} class="word policy"{% endif %}>{{ cell }}</td>{% endfor %}
</tr>{% endfor %}</tbody></table></div>{% endfor %}
<h2>Accuracy against diversity</h2><figure>{{ points|safe }}</figure>
{% if effect %}<h2>Effect of {{ setting }}</h2><figure>{{ effect|safe }}</figure>{% endif %}
{% if bars %}<h2>Genres</h2>
<p class="quiet">Share of the lists minus share of the histories, mean over seeds (SPRec fig. 3).</p>
<figure>{{ bars|safe }}</figure>{% endif %}
</body></html>
"""


def cells_of(row: Row, k: int) -> list[str]:
    """A row of the table as text."""
    words = [f"{row['method']}{' ●' if row.get('pareto') else ''}"]
    for name in ("HR", "NDCG", "DivRatio"):
        words.append(_interval(row[f"{name}@{k}"]))
    words += [_spread(row[f"{name}@{k}"]) for name in ("ORRatio", "MGU", "DGU")]
    for name in ("HR", "NDCG"):
        test = row.get(f"Δ{name}@{k}")
        words.append("–" if not test else f"{test['value']:+.4f}, p {_p(test.get('p_holm'))}")
    alphas = ", ".join(f"α {alpha:g}" for alpha in row.get("alpha", []))
    return [words[0] + (f" ({alphas})" if alphas else ""), *words[1:]]


def head_of(k: int, against: str) -> list[str]:
    """The names of the columns of :func:`cells_of`."""
    names = [f"{name}@{k}" for name in ("HR", "NDCG", "DivRatio", "ORRatio", "MGU", "DGU")]
    return ["method", *names, f"ΔHR to {against}", f"ΔNDCG to {against}"]


def page(
    rows: Sequence[Row],
    published: Sequence[Row],
    k: int,
    against: str,
    title: str,
    subtitle: str,
    setting: str = "",
) -> str:
    """The page as HTML; every text in it is escaped. ``setting`` is what rows with ``varied`` differ in."""
    from jinja2 import Environment

    from rayrec.page import STYLE

    tables = [{"title": subtitle, "head": head_of(k, against), "rows": [cells_of(row, k) for row in rows]}]
    if published and k == 5:
        head = ["method", "N", *(f"{name}@5" for name in ("HR", "NDCG", "DivRatio", "ORRatio", "MGU"))]
        lines = [[str(row["method"]), str(row["N"]), *(f"{row[name]:.4f}" for name in head[2:])] for row in published]
        tables.append(
            {"title": "Published (SPRec tables 2 and 3, Llama-3.2-1B): not ours", "head": head, "rows": lines}
        )
    # Bars for seven at most: baselines of the data go last.
    gaps = {
        row["method"]: row["gaps"] for row in sorted(rows, key=lambda r: r["method"] == "Popular") if row.get("gaps")
    }
    return (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            title=title,
            subtitle=subtitle,
            style=STYLE,
            against=against,
            tables=tables,
            points=figures.methods(rows, k),
            setting=setting,
            effect=figures.effect(rows, setting, k) if setting else "",
            bars=figures.genre_bars(dict(list(gaps.items())[:7]), k) if len(gaps) > 1 else "",
        )
    )


def as_csv(rows: Sequence[Row]) -> str:
    """One line per method; a nested value has its column named with a dot."""
    flat = [dict(_flat(row)) for row in rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(row: Row, prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", " ".join(map(str, value)) if isinstance(value, list) else value))
    return pairs


def _interval(entry: Row) -> str:
    if entry["value"] is None:
        return "–"
    inside = "" if entry["low"] is None else f" [{entry['low']:.4f}, {entry['high']:.4f}]"
    return f"{entry['value']:.4f}{inside}{_sd(entry)}"


def _spread(entry: Row) -> str:
    return "–" if entry["value"] is None else f"{entry['value']:.4f}{_sd(entry)}"


def _sd(entry: Row) -> str:
    return "" if entry["seed_sd"] is None else f" ±{entry['seed_sd']:.4f}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
