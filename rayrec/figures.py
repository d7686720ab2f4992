"""The pictures of a report, as SVG text: no window, no global state, and the same bytes for the same numbers.

Colours are Okabe and Ito's, which the colour-blind can tell apart; markers and lightness repeat what colour says, so
that a grey print can be read as well.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayrec.console import cuts, label, number
from rayrec.timeline import Span, busy, waits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, QUIET, FAINT = "#333333", "#777777", "#E4E4E4"
#: Colour and marker of the list lengths, of the decoders and so on, in order.
SERIES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
KINDS = {"sft": BLUE, "prefer": VERMILION, "negatives": GREEN, "evaluate": "#9C4F80", "pretrain": "#8A8A8A"}
#: Metric, and the direction in which it is better.
METRICS = {"HR": "↑", "NDCG": "↑", "DivRatio": "↑", "ORRatio": "↓", "MGU": "↓", "DGU": "↓"}
#: Points of one training curve; a longer one is drawn as means over equal stretches.
MOST_POINTS = 300
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayrec",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": "#BBBBBB",
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 2,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def _draw(
    size: tuple[float, float], paint: Callable[[Figure], None], margins: tuple[float, float, float, float]
) -> str:
    """Return the SVG of a figure that ``paint`` fills.

    ``size`` is (width, height) and ``margins``, which the panels leave free, are (left, top, right, bottom), in inches.
    """
    import logging

    import matplotlib
    from matplotlib.figure import Figure

    # Glyphs missing from the measuring font are no fault: the reader's browser sets the text.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    (width, height), (left, top, right, bottom) = size, margins
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size)
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Inside a page the picture takes the page's width, and group names would clash between pictures.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Name ``handles`` in one line above the panels, at the right."""
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=len(handles))


def _value(row: Row, key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)


def curves(rows: Sequence[Row]) -> str:
    """Draw each metric over the iterations, one line per k; ``rows`` are one group's evaluations and baselines.

    Bars at HR are 95 % binomial intervals, 1.96·sqrt(p(1 − p)/N).
    """
    policies = sorted((row for row in rows if row["kind"] == "evaluation"), key=lambda row: row.get("iteration", 0))
    baselines = [row for row in rows if row["kind"] == "baseline"]

    def paint(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        grid = figure.subplots(2, 3, sharex=True, gridspec_kw={"wspace": 0.2, "hspace": 0.28})
        for axes, (name, better) in zip(grid.flat, METRICS.items(), strict=True):
            _curve(axes, name, policies, baselines)
            axes.set_title(f"{name}  {better}")
        for axes in grid[1]:
            axes.set_xlabel("iteration (0: before self-play)")
        handles, _ = grid.flat[0].get_legend_handles_labels()
        names = dict.fromkeys(label(row) for row in baselines)
        _legend(figure, [*handles, *(Line2D([], [], color=QUIET, linestyle=":", label=name) for name in names)])

    return _draw((10, 4.7), paint, (0.4, 0.45, 0.1, 0.42))


def _curve(axes: Axes, name: str, policies: Sequence[Row], baselines: Sequence[Row]) -> None:
    from matplotlib.ticker import MaxNLocator

    x, top = [row.get("iteration", 0) for row in policies], 0.0
    for k, (colour, marker) in zip(cuts(policies), SERIES, strict=False):
        y = [_value(row, f"{name}@{k}") for row in policies]
        spread = [0.0] * len(y)
        if name == "HR":  # a share of rows, so binomial
            spread = [
                1.96 * math.sqrt(p * (1 - p) / max(row.get("N") or 1, 1)) for p, row in zip(y, policies, strict=True)
            ]
            axes.errorbar(x, y, spread, fmt="none", ecolor=colour, elinewidth=0.7, capsize=2, alpha=0.6)
        axes.plot(x, y, color=colour, marker=marker, label=f"k = {k}", clip_on=False)
        top = max([top, *(a + b for a, b in zip(y, spread, strict=True) if not math.isnan(a))])
        for row in baselines:
            axes.axhline(_value(row, f"{name}@{k}"), color=colour, linestyle=":", linewidth=0.9)
    # The policies set the scale: a baseline beyond it stands in the table.
    axes.set_ylim(0, top * 1.08 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(min(x) - 0.15, max(x) + 0.15)
    axes.grid(axis="x", visible=False)


def tradeoff(groups: Mapping[str, Sequence[Row]], k: int) -> str:
    """Draw accuracy against diversity at ``k``: up and to the right is better; a line joins the iterations in order."""
    baselines = {label(row): row for rows in groups.values() for row in rows if row["kind"] == "baseline"}

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.16})
        for axes, name in zip(panels, ("DivRatio", "ORRatio"), strict=True):
            tops = (0.0, 0.0)
            for (title, rows), (colour, marker) in zip(groups.items(), SERIES, strict=False):
                top = _path(axes, (f"NDCG@{k}", f"{name}@{k}"), rows, colour, marker, title)
                tops = (max(tops[0], top[0]), max(tops[1], top[1]))
            limits = (tops[0] * 1.15 or 1.0, tops[1] * 1.15 or 1.0)
            for text, row in baselines.items():
                _baseline(axes, text, (_value(row, f"NDCG@{k}"), _value(row, f"{name}@{k}")), limits)
            turned = name == "ORRatio"
            axes.set_xlim(0, limits[0])
            axes.set_ylim(*((limits[1], 0) if turned else (0, limits[1])))
            axes.set_title(f"NDCG ↑ against {name} {METRICS[name]}")
            axes.set(xlabel=f"NDCG@{k}", ylabel=f"{name}@{k}" + (", axis turned round" if turned else ""))
        handles, _ = panels[0].get_legend_handles_labels()
        _legend(figure, handles)

    return _draw((10, 4.0), paint, (0.5, 0.45, 0.1, 0.42))


def _path(
    axes: Axes, keys: tuple[str, str], rows: Sequence[Row], colour: str, marker: str, title: str
) -> tuple[float, float]:
    """Draw one group's policies in order and return the largest values."""
    policies = sorted((row for row in rows if row["kind"] == "evaluation"), key=lambda row: row.get("iteration", 0))
    policies = [row for row in policies if None not in (row.get(keys[0]), row.get(keys[1]))]
    x, y = ([_value(row, key) for row in policies] for key in keys)
    axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
    axes.plot(x, y, color=colour, marker=marker, linestyle="none", label=title, markersize=5)
    axes.plot(x[:1], y[:1], color="white", marker=marker, linestyle="none", markeredgecolor=colour, markersize=5)
    for row, at_x, at_y in zip(policies, x, y, strict=True):
        first = row.get("iteration") == 0
        place, side = ((-6, 4), "right") if first else ((5, 4), "left")
        text = label(row).split()[0] if first else str(row.get("iteration"))
        axes.annotate(text, (at_x, at_y), place, textcoords="offset points", ha=side, color=colour, fontsize=7)
    return max(x, default=0.0), max(y, default=0.0)


def _baseline(axes: Axes, text: str, point: tuple[float, float], limits: tuple[float, float]) -> None:
    """Mark a baseline; one off the scale, which the policies set, stands at the edge with its numbers."""
    if math.isnan(sum(point)):
        return
    inside = min(point[0], limits[0]), min(point[1], limits[1])
    if inside != point:
        text += f" ({point[0]:.3f}, {point[1]:.3f}), off the scale"
    axes.plot(*inside, color=QUIET, marker="D", linestyle="none", clip_on=False, zorder=3)
    far = inside[0] > 0.8 * limits[0]  # its words would leave the picture on the right
    place, side = ((-6, 4), "right") if far else ((6, 4), "left")
    axes.annotate(text, inside, place, textcoords="offset points", ha=side, color=QUIET, fontsize=7)


def methods(rows: Sequence[Row], k: int) -> str:
    """Draw each method of a comparison as a point with its 95 % intervals, and join the Pareto front.

    ``rows`` are those of :func:`rayrec.comparison.compare`.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        points = [(row, row[f"NDCG@{k}"], row[f"DivRatio@{k}"]) for row in rows]
        points = [(row, x, y) for row, x, y in points if None not in (x["value"], y["value"])]
        front = sorted((x["value"], y["value"]) for row, x, y in points if row["pareto"])
        axes.plot(*zip(*front, strict=True), color=QUIET, linewidth=0.8, linestyle="--", label="Pareto front")
        for number_, (row, x, y) in enumerate(points):
            colour, marker = SERIES[number_ % len(SERIES)]
            spans: dict[str, Any] = {
                f"{axis}err": [[one["value"] - one["low"]], [one["high"] - one["value"]]]
                for axis, one in (("x", x), ("y", y))
                if one["low"] is not None
            }
            axes.errorbar(x["value"], y["value"], **spans, color=colour, marker=marker, markersize=5, linewidth=0.7)
            place = (x["value"], y["value"])
            axes.annotate(row["method"], place, (6, 5), textcoords="offset points", color=colour, fontsize=7.5)
        axes.set(xlabel=f"NDCG@{k}  ↑", ylabel=f"DivRatio@{k}  ↑")
        axes.set_xlim(left=0)
        heights = [y["value"] for _, _, y in points if y["value"] > 0]
        if heights and max(heights) > 8 * min(heights):  # else all but the most diverse lie on one line
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        _legend(figure, axes.get_legend_handles_labels()[0])

    return _draw((10, 4.6), paint, (0.55, 0.4, 0.3, 0.45))


def effect(rows: Sequence[Row], setting: str, k: int) -> str:
    """Draw how the metrics of each method follow a setting, with 95 % intervals where there are some.

    ``rows`` are those of :func:`rayrec.comparison.compare`; those with ``varied`` (method and value) are drawn.
    """
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if "varied" in row:
            lines.setdefault(row["varied"]["method"], []).append(row)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 3)
        for axes, name in zip(panels, (f"NDCG@{k}", f"DivRatio@{k}", f"ORRatio@{k}"), strict=True):
            for number_, (method, members) in enumerate(lines.items()):
                colour, marker = SERIES[number_ % len(SERIES)]
                known = sorted((r["varied"]["value"], r[name]) for r in members if r[name]["value"] is not None)
                x, y = [value for value, _ in known], [one["value"] for _, one in known]
                spans: dict[str, Any] = {}
                if all(one["low"] is not None for _, one in known):
                    low = [one["value"] - one["low"] for _, one in known]
                    spans["yerr"] = [low, [one["high"] - one["value"] for _, one in known]]
                axes.errorbar(x, y, **spans, color=colour, marker=marker, markersize=4, linewidth=0.9, label=method)
            axes.set(xlabel=setting, ylabel=name)
            axes.set_ylim(bottom=0)
        _legend(figure, panels[0].get_legend_handles_labels()[0])

    return _draw((10, 3.4), paint, (0.55, 0.4, 0.3, 0.45))


def genre_gaps(row: Row) -> tuple[int, dict[str, float]] | None:
    """Return (k, {genre: d_g}) at the smallest k of a row's ``genres`` that has them, or None where none has.

    d_g = GP_g − GH_g, the genre's share of the top-k lists minus its share of the histories (SPRec section 3.3).
    """
    genres = row.get("genres") or {}
    history = genres.get("GH") or {}
    for k in cuts([row]):
        lists = genres.get(f"GP@{k}")
        if lists and history:
            return k, {name: float(lists[name]) - float(history[name]) for name in genres["selected"]}
    return None


def genre_bars(gaps: Mapping[str, Mapping[str, float]], k: int) -> str:
    """Draw d_g per genre as in SPRec fig. 3; ``gaps`` is {policy: {genre: d_g}}, of two to seven policies."""
    names = sorted(
        {genre for gap in gaps.values() for genre in gap}, key=lambda g: (-next(iter(gaps.values())).get(g, 0), g)
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        width, colours = 0.8 / len(gaps), ("#B9C3CC", BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
        for at, ((policy, gap), colour) in enumerate(zip(gaps.items(), colours, strict=False)):
            x = [place + (at - (len(gaps) - 1) / 2) * width for place in range(len(names))]
            axes.bar(x, [100 * gap.get(name, math.nan) for name in names], width * 0.94, color=colour, label=policy)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(names)), [textwrap.fill(name, 110 // len(names) or 1) for name in names], color=INK)
        axes.set_ylabel(f"share of top-{k} lists − share of histories\n(percentage points)")
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.02)
        handles, _ = axes.get_legend_handles_labels()
        _legend(figure, handles)

    return _draw((10, 3.4), paint, (0.55, 0.3, 0.1, 0.5))


def training(steps: Mapping[str, Sequence[Row]]) -> str:
    """Draw loss, reward margin and reward accuracy over the steps; ``steps`` is {phase: its steps}."""
    panels: dict[str, tuple[str, str, dict[str, Sequence[Row]]]] = {}
    wanted = (
        ("pretrain", "loss", "Pre-training loss  ↓", "nats per token"),
        ("sft", "loss", "SFT loss  ↓", "nats per token"),
        ("prefer", "loss", "Preference loss  ↓", "nats per example"),
        ("prefer", "reward_margin", "Reward margin  ↑", "β · nats, chosen − rejected"),
        ("prefer", "reward_accuracy", "Reward accuracy  ↑", "share of pairs"),
    )
    for kind, key, title, unit in wanted:
        rows = {
            phase: found
            for phase, found in steps.items()
            if phase.endswith(f"/{kind}") and any(row.get(key) is not None for row in found)
        }
        if rows:
            panels[title] = (key, unit, rows)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, squeeze=False, gridspec_kw={"wspace": 0.26, "hspace": 0.42})
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, (key, unit, rows)) in zip(grid.flat, panels.items(), strict=False):
            _training_panel(axes, key, rows)
            axes.set(title=title, xlabel="step", ylabel=unit)

    columns = 2 if len(panels) in (2, 4) else 3
    lines = math.ceil(len(panels) / columns)
    return _draw((10, 2.7 * lines), paint, (0.5, 0.25, 0.1, 0.42)) if panels else ""


def _training_panel(axes: Axes, key: str, rows: Mapping[str, Sequence[Row]]) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    for at, (phase, found) in enumerate(rows.items()):
        colour = colormaps["cividis"](0.9 * at / max(1, len(rows) - 1))
        every = math.ceil(len(found) / MOST_POINTS)
        points = [found[start : start + every] for start in range(0, len(found), every)]
        x = [sum(_value(row, "step") for row in part) / len(part) for part in points]
        y = [sum(_value(row, key) for row in part) / len(part) for part in points]
        axes.plot(x, y, color=colour, linewidth=1.1, label=phase)
    if key == "reward_accuracy":
        axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=6.5, handlelength=1.2, ncols=1 + (len(rows) > 4))


def _squeeze(phases: Sequence[Span]) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """Shorten the long pauses of all lanes together.

    Returns:
        Knots in true seconds, the same knots in drawn seconds, and the pauses as (where drawn, true seconds).
    """
    work = busy(phases)
    longest = max(1.0, 0.06 * sum(end - start for start, end in work))
    true, drawn, cut = [work[0][0]], [work[0][0]], []
    for (start, end), following in zip(work, [*work[1:], None], strict=True):
        true.append(end)
        drawn.append(drawn[-1] + end - start)
        if following:
            pause = following[0] - end
            if pause > 2 * longest:
                cut.append((drawn[-1] + longest / 2, pause))
            true.append(following[0])
            drawn.append(drawn[-1] + (longest if pause > 2 * longest else pause))
    return true, drawn, cut


def lanes(phases: Sequence[Span]) -> str:
    """Draw the lanes over time; a hatched stretch waits, and an arrow comes from the phase that it waited for."""
    import numpy as np

    true, drawn, cut = _squeeze(phases)
    names = sorted({span.lane for span in phases}, key=lambda lane: (lane != "trainers", lane))
    place = {lane: len(names) - 1 - at for at, lane in enumerate(names)}

    def at(seconds: float) -> float:
        return float(np.interp(seconds, true, drawn))

    def paint(figure: Figure) -> None:
        from matplotlib.patches import Patch

        axes = figure.subplots()
        whole = drawn[-1] - drawn[0] or 1.0
        digits = 0 if whole > 8 else 2
        for span in phases:
            kind = span.phase.rsplit("/", 1)[-1]
            left, right = at(span.start), at(span.end)
            colour = KINDS.get(kind, ORANGE)
            axes.barh(place[span.lane], right - left, 0.5, left, color=colour, edgecolor="white", linewidth=0.6)
            name = _fitting(span.phase, (right - left) / whole)
            middle = (left + right) / 2
            axes.text(middle, place[span.lane], name, ha="center", va="center", color="white", fontsize=6.5)
        for wait in waits(phases):
            left, right = at(wait.start), at(wait.end)
            look = {"color": "none", "edgecolor": "#BBBBBB", "hatch": "/////", "linewidth": 0}
            axes.barh(place[wait.lane], right - left, 0.18, left, **look)
            if wait.cause:
                ends = (at(wait.cause.end), place[wait.cause.lane]), (right, place[wait.lane])
                up = 0.26 if ends[1][1] > ends[0][1] else -0.26
                arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (ends[1][0], ends[1][1] - up), (ends[0][0], ends[0][1] + up), arrowprops=arrow)
        for middle, pause in cut:
            axes.axvline(middle, color=QUIET, linestyle=":", linewidth=0.8)
            axes.text(middle, len(names) - 0.52, f"{pause:,.0f} s left out", ha="center", va="bottom", color=QUIET)
        axes.set_yticks(list(place.values()), list(place), color=INK)
        axes.set_ylim(-0.5, len(names) - 0.5)
        axes.set_xlim(drawn[0], drawn[-1])
        axes.xaxis.set_major_formatter(lambda value, _: number(float(np.interp(value, drawn, true)), digits))
        axes.set_xlabel("seconds since the first phase began")
        axes.grid(axis="y", visible=False)
        kinds = dict.fromkeys(span.phase.rsplit("/", 1)[-1] for span in phases)
        handles = [Patch(color=KINDS.get(kind, ORANGE), label=kind) for kind in kinds]
        handles.append(Patch(facecolor="none", edgecolor="#BBBBBB", hatch="/////", linewidth=0, label="waits"))
        _legend(figure, handles)

    return _draw((10, 1.0 + 0.55 * len(names)), paint, (0.75, 0.5, 0.1, 0.42))


def _fitting(phase: str, share: float) -> str:
    """Return as much of a phase's name as fits into a bar that takes ``share`` of the axes' width."""
    for text in (phase, phase.replace("/", "\n"), phase.split("/")[0]):
        if share > 0.0062 * max(map(len, text.split("\n"))):
            return text
    return ""
