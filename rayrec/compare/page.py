"""What a comparison shows: a table for the terminal, a CSV, and one page without script or network."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayrec.compare.compare import CHOICE, OTHERS
from rayrec.report import figures

Row = Mapping[str, Any]

#: Methods whose bars can be told apart.
_BARS = 7

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>{{ style|safe }}</style></head><body>
<h1>{{ title }}</h1><p class="quiet">{{ subtitle }}</p>
<h2>Methods</h2>
<p class="quiet">Mean over seeds. In brackets the 95 % interval: a bootstrap over users for HR and NDCG, a jackknife
over users for DivRatio and ORRatio. After ± the standard deviation over seeds. p: paired bootstrap against
{{ against }}, after Holm's correction over the table; the other differences have a paired jackknife. ● lies on the
Pareto front of NDCG and DivRatio. ValidRatio is that of the written answer; methods that only rank candidates have 1.
Seconds are those of all seeds; what methods share was counted for the first. Memory is the most that one cell
held.</p>
{% for table in tables %}<h3>{{ table.title }}</h3><div class="scroll"><table class="wide"><thead><tr>
{% for name in table.head %}<th{% if loop.first %} class="word"{% endif %}>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>
{% for cell in row %}<td{% if loop.first %} class="word policy"{% endif %}>{{ cell }}</td>{% endfor %}
</tr>{% endfor %}</tbody></table></div>{% endfor %}
<h2>Accuracy against diversity</h2><figure>{{ points|safe }}</figure>
{% if effect %}<h2>Effect of {{ setting }}</h2><figure>{{ effect|safe }}</figure>{% endif %}
{% if bars %}<h2>Genres</h2>
<p class="quiet">Share of the lists minus share of the histories, mean over seeds (SPRec fig. 3).
{% if unseen %}{{ unseen }} more methods have no bars: seven can be told apart.{% endif %}</p>
<figure>{{ bars|safe }}</figure>{% endif %}
</body></html>
"""


def table(rows: Sequence[Row], k: int, against: str, wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """The head and the cells of the comparison as text; columns that no row has a value for are left out.

    ``wide`` has the differences in diversity and the interval of ORRatio too.
    """
    accuracy = [name for name in ("HR@1", f"HR@{k}", f"NDCG@{k}") if name != "NDCG@1"]  # NDCG@1 is HR@1
    accuracy = list(dict.fromkeys(accuracy))
    columns: dict[str, Callable[[Row], str]] = {"method": _name}
    for name in (*accuracy, *(f"{name}@{k}" for name in OTHERS), *CHOICE[:3]):
        inside = wide or not name.startswith("ORRatio")
        columns[name] = lambda row, name=name, inside=inside: _estimate(row.get(name), inside)
    for name in (*accuracy, *([f"DivRatio@{k}", f"ORRatio@{k}"] if wide else [])):
        columns[f"Δ{name.removesuffix(f'@{k}')} to {against}"] = lambda row, name=name: _difference(row.get(f"Δ{name}"))
    columns["seconds"] = lambda row: f"{row['seconds']:,.0f}" if row.get("seconds") else "–"
    columns["memory, GB"] = lambda row: f"{row['memory'] / 1e9:.1f}" if row.get("memory") else "–"
    lines = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    told = {name: cells for name, cells in lines.items() if set(cells) != {"–"}}
    return list(told), [list(cells) for cells in zip(*told.values(), strict=True)]


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

    from rayrec.report.page import STYLE

    head, lines = table(rows, k, against, wide=True)
    tables = [{"title": subtitle, "head": head, "rows": lines}, *_published(published, k)]
    # The baseline of the data goes last.
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
            bars=figures.genre_bars(dict(list(gaps.items())[:_BARS]), k) if len(gaps) > 1 else "",
            unseen=max(0, len(gaps) - _BARS),
        )
    )


def _published(rows: Sequence[Row], k: int) -> list[dict[str, Any]]:
    """A table of each source, of the metrics that stand in ours."""
    shown = [name for name in (f"{name}@{k}" for name in ("HR", "NDCG", "DivRatio", "ORRatio", "MGU"))]
    shown = list(dict.fromkeys(["HR@1", *shown, "ValidRatio"]))
    made = []
    for source in dict.fromkeys(row["source"] for row in rows):
        mine = [row for row in rows if row["source"] == source]
        names = [name for name in shown if name in mine[0]]
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


def _flat(row: Row, prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", " ".join(map(str, value)) if isinstance(value, list) else value))
    return pairs


def _name(row: Row) -> str:
    alphas = ", ".join(f"α {alpha:g}" for alpha in row.get("alpha", []))
    return f"{row['method']}{' ●' if row.get('pareto') else ''}" + (f" ({alphas})" if alphas else "")


def _estimate(entry: Row | None, inside: bool) -> str:
    if entry is None or entry["value"] is None:
        return "–"
    spread = "" if entry["seed_sd"] is None else f" ±{entry['seed_sd']:.4f}"
    return f"{entry['value']:.4f}{_inside(entry, '.4f') if inside else ''}{spread}"


def _difference(entry: Row | None) -> str:
    """With a p-value where it was tested, else with its interval."""
    if entry is None or entry["value"] is None:
        return "–"
    tested = f", p {_p(entry.get('p_holm'))}" if "p" in entry else _inside(entry, "+.4f")
    return f"{entry['value']:+.4f}{tested}"


def _inside(entry: Row, form: str) -> str:
    return "" if entry["low"] is None else f" [{entry['low']:{form}}, {entry['high']:{form}}]"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
