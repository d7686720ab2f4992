"""Pictures of the quality of the lists: over iterations, against diversity, by method, by setting and by genre."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain, cycle
from typing import TYPE_CHECKING, Any

from rayrec.metrics import TRADE_OFFS, Metric
from rayrec.metrics.intervals import wilson
from rayrec.report.figures.drawing import BARS, INK, QUIET, SERIES, draw, legend, value
from rayrec.report.rows import Row, baselines, cuts, label, policies, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves(rows: Sequence[Row]) -> str:
    """Draw each metric over the iterations, one line per k, with 95 % binomial intervals of shares of rows."""
    others = baselines(rows)
    metrics, columns = shown(rows, cuts(rows)), 3
    lines = math.ceil(len(metrics) / columns)

    def paint(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        grid = figure.subplots(lines, columns, sharex=True, squeeze=False, gridspec_kw={"wspace": 0.2, "hspace": 0.28})
        for axes, metric in zip(grid.flat, metrics, strict=False):
            _curve(axes, metric, policies(rows), others)
            axes.set_title(f"{metric.name}  {metric.arrow}")
        for axes in grid.flat[len(metrics) :]:
            axes.set_axis_off()
        for axes in grid.flat[max(0, len(metrics) - columns) : len(metrics)]:
            axes.xaxis.set_tick_params(labelbottom=True)
            axes.set_xlabel("iteration (0: before self-play)")
        handles, _ = grid.flat[0].get_legend_handles_labels()
        names = dict.fromkeys(label(row) for row in others)
        legend(figure, [*handles, *(Line2D([], [], color=QUIET, linestyle=":", label=name) for name in names)])

    return draw((10, 0.87 + 1.915 * lines), paint, (0.4, 0.45, 0.1, 0.42)) if metrics else ""


def _curve(axes: Axes, metric: Metric, rows: Sequence[Row], others: Sequence[Row]) -> None:
    from matplotlib.ticker import MaxNLocator

    x, top = [row.get("iteration", 0) for row in rows], 0.0
    keys = dict.fromkeys(metric.key(k) for k in cuts(rows))
    for (k, key), (colour, marker) in zip(zip(cuts(rows), keys, strict=False), SERIES, strict=False):
        y = [value(row, key) for row in rows]
        above = [0.0] * len(y)
        if metric.binomial:
            totals = [max(row.get(metric.count or "N") or 1, 1) for row in rows]
            edges = [wilson(p, n) for p, n in zip(y, totals, strict=True)]
            below = [p - low for p, (low, _) in zip(y, edges, strict=True)]
            above = [high - p for p, (_, high) in zip(y, edges, strict=True)]
            axes.errorbar(x, y, [below, above], fmt="none", ecolor=colour, elinewidth=0.7, capsize=2, alpha=0.6)
        axes.plot(x, y, color=colour, marker=marker, label=f"k = {k}", clip_on=False)
        top = max([top, *(a + b for a, b in zip(y, above, strict=True) if not math.isnan(a))])
        for row in others:
            axes.axhline(value(row, key), color=colour, linestyle=":", linewidth=0.9)
    # The policies set the scale: a baseline beyond it is in the table only.
    axes.set_ylim(0, top * 1.08 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(min(x) - 0.15, max(x) + 0.15)
    axes.grid(axis="x", visible=False)


def tradeoff(groups: Mapping[str, Sequence[Row]], k: int) -> str:
    """Draw accuracy against diversity at ``k``: up and to the right is better; a line joins the iterations in order."""
    others = {label(row): row for rows in groups.values() for row in baselines(rows)}

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(TRADE_OFFS), gridspec_kw={"wspace": 0.16})
        for axes, pair in zip(panels, TRADE_OFFS, strict=True):
            keys, turned = (pair[0].key(k), pair[1].key(k)), pair[1].better == "down"
            tops = (0.0, 0.0)
            for (title, rows), (colour, marker) in zip(groups.items(), SERIES, strict=False):
                top = _path(axes, keys, rows, colour, marker, title)
                tops = (max(tops[0], top[0]), max(tops[1], top[1]))
            limits = (tops[0] * 1.15 or 1.0, tops[1] * 1.15 or 1.0)
            for text, row in others.items():
                _baseline(axes, text, (value(row, keys[0]), value(row, keys[1])), limits)
            axes.set_xlim(0, limits[0])
            axes.set_ylim(*((limits[1], 0) if turned else (0, limits[1])))
            axes.set_title(f"{pair[0].name} {pair[0].arrow} against {pair[1].name} {pair[1].arrow}")
            axes.set(xlabel=keys[0], ylabel=keys[1] + (", axis turned round" if turned else ""))
        legend(figure, panels[0].get_legend_handles_labels()[0])

    return draw((10, 4.0), paint, (0.5, 0.45, 0.1, 0.42))


def _path(
    axes: Axes, keys: tuple[str, str], rows: Sequence[Row], colour: str, marker: str, title: str
) -> tuple[float, float]:
    """Draw one group's policies in order and return the largest values."""
    known = [row for row in policies(rows) if None not in (row.get(keys[0]), row.get(keys[1]))]
    x, y = ([value(row, key) for row in known] for key in keys)
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
    axes.plot(x, y, color=colour, marker=marker, linestyle="none", label=title, markersize=5)
    axes.plot(x[:1], y[:1], color="white", marker=marker, linestyle="none", markeredgecolor=colour, markersize=5)
    tops, names = (max(x, default=0.0), max(y, default=0.0)), dict[tuple[float, float], list[str]]()
    for row, at_x, at_y in zip(known, x, y, strict=True):
        if row.get("iteration") == 0:
            look: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "color": colour, "fontsize": 7}
            axes.annotate(label(row).split()[0], (at_x, at_y), (-6, 4), **look)
            continue
        beside = (at for at in names if abs(at[0] - at_x) < 0.03 * tops[0] and abs(at[1] - at_y) < 0.03 * tops[1])
        # One over the other they could not be read.
        names.setdefault(next(beside, (at_x, at_y)), []).append(str(row.get("iteration")))
    for at, found in names.items():
        axes.annotate(", ".join(found), at, (5, 4), textcoords="offset points", ha="left", color=colour, fontsize=7)
    return tops


def _baseline(axes: Axes, text: str, point: tuple[float, float], limits: tuple[float, float]) -> None:
    """Mark a baseline; one off the scale, which the policies set, is at the edge with its numbers."""
    if math.isnan(sum(point)):
        return
    inside = min(point[0], limits[0]), min(point[1], limits[1])
    if inside != point:
        text += f" ({point[0]:.3f}, {point[1]:.3f}), off the scale"
    axes.plot(*inside, color=QUIET, marker="D", linestyle="none", clip_on=False, zorder=3)
    far = inside[0] > 0.8 * limits[0]  # its text would leave the picture on the right
    place, side = ((-6, 4), "right") if far else ((6, 4), "left")
    axes.annotate(text, inside, place, textcoords="offset points", ha=side, color=QUIET, fontsize=7)


def _spread(axis: str, entries: Sequence[Row]) -> dict[str, Any]:
    """The error bars of estimates that all have an interval."""
    if any(one["low"] is None for one in entries):
        return {}
    return {
        f"{axis}err": [[one["value"] - one["low"] for one in entries], [one["high"] - one["value"] for one in entries]]
    }


def methods(rows: Sequence[Row], k: int) -> str:
    """Draw each row of :func:`rayrec.compare.compare.compare` with its 95 % intervals, and join the Pareto front."""
    across, up = TRADE_OFFS[0]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        points = [(row, row[across.key(k)], row[up.key(k)]) for row in rows]
        points = [one for one in points if None not in (one[1]["value"], one[2]["value"])]
        points.sort(key=lambda one: -one[2]["value"])  # names in the order of the points' heights
        drawn = [one for one in points if one[0]["method"] != "Popular"] or points
        front = sorted((x["value"], y["value"]) for row, x, y in drawn if row["pareto"])
        axes.plot(*zip(*front, strict=True), color=QUIET, linewidth=0.8, linestyle="--", label="Pareto front")
        for at, (row, x, y) in enumerate(drawn):
            (colour, _), (_, marker) = (SERIES[i % len(SERIES)] for i in (at, at + at // len(SERIES)))
            look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 0.7}
            bars = _spread("x", [x]) | _spread("y", [y])
            axes.errorbar(x["value"], y["value"], **bars, **look, label=row["method"])
        axes.set(xlabel=f"{across.key(k)}  {across.arrow}", ylabel=f"{up.key(k)}  {up.arrow}")
        heights = [y["value"] for _, _, y in drawn if y["value"] > 0]
        if heights and max(heights) > 8 * min(heights):  # else all but the most diverse are on one line
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        for _, x, y in (one for one in points if one not in drawn):  # on the scale of Popular the others are one heap
            where = f"Popular ({x['value']:.3f}, {y['value']:.3f})"
            axes.text(0.01, 0.02, where, transform=axes.transAxes, color=QUIET, fontsize=7)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="upper right", bbox_to_anchor=(1, 0.95), borderaxespad=0)

    return draw((10, 4.6), paint, (0.65, 0.2, 1.6, 0.45))


def effect(rows: Sequence[Row], setting: str, k: int) -> str:
    """Draw how metrics follow a setting, for rows of :func:`~rayrec.compare.compare.compare` that have ``varied``."""
    keys = list(dict.fromkeys(metric.key(k) for metric in chain(*TRADE_OFFS)))
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if "varied" in row:
            lines.setdefault(row["varied"]["method"], []).append(row)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(keys))
        for axes, key in zip(panels, keys, strict=True):
            for (method, members), (colour, marker) in zip(lines.items(), cycle(SERIES), strict=False):
                known = sorted((r["varied"]["value"], r[key]) for r in members if r[key]["value"] is not None)
                entries = [one for _, one in known]
                x, y = [at for at, _ in known], [one["value"] for one in entries]
                look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 0.9}
                axes.errorbar(x, y, **_spread("y", entries), **look, label=method)
            axes.set(xlabel=setting, ylabel=key)
            axes.set_ylim(bottom=0)
        legend(figure, panels[0].get_legend_handles_labels()[0])

    return draw((10, 3.4), paint, (0.55, 0.4, 0.3, 0.45))


def genre_bars(gaps: Mapping[str, Mapping[str, float]], k: int) -> str:
    """Draw d_g per genre as in SPRec fig. 3; ``gaps`` is {policy: {genre: d_g}}, of two to seven policies."""
    names = sorted(
        {genre for gap in gaps.values() for genre in gap}, key=lambda g: (-next(iter(gaps.values())).get(g, 0), g)
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / len(gaps)
        for at, ((policy, gap), colour) in enumerate(zip(gaps.items(), BARS, strict=False)):
            x = [place + (at - (len(gaps) - 1) / 2) * width for place in range(len(names))]
            axes.bar(x, [100 * gap.get(name, math.nan) for name in names], width * 0.94, color=colour, label=policy)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(names)), [textwrap.fill(name, 110 // len(names) or 1) for name in names], color=INK)
        axes.set_ylabel(f"share of top-{k} lists − share of histories\n(percentage points)")
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.02)
        legend(figure, axes.get_legend_handles_labels()[0])

    return draw((10, 3.6), paint, (0.75, 0.3, 0.1, 0.7))
