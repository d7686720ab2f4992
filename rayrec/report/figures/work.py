"""Pictures of the work of a run: its training curves, and its lanes over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rayrec.report.figures.drawing import BLUE, GREEN, INK, ORANGE, QUIET, VERMILION, draw, legend, value
from rayrec.report.rows import Row, number
from rayrec.report.timeline import Span, busy, waits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {"sft": BLUE, "prefer": VERMILION, "negatives": GREEN, "evaluate": "#9C4F80", "pretrain": "#8A8A8A"}
#: Points of one training curve; a longer one is drawn as means over equal stretches.
MOST_POINTS = 300


def training(steps: Mapping[str, Sequence[Row]]) -> str:
    """Draw loss, reward margin and reward accuracy over the steps; ``steps`` is {phase: its steps}."""
    panels: dict[str, tuple[str, str, dict[str, Sequence[Row]]]] = {}
    wanted = (
        ("pretrain", "loss", "Pre-training loss  ↓", "nats per token"),
        ("sft", "loss", "SFT loss  ↓", "nats per token"),
        ("prefer", "loss", "Preference loss  ↓", "nats per example"),
        ("prefer", "reward_margin", "Reward margin  ↑", "β · nats, chosen − rejected"),
        ("prefer", "reward_accuracy", "Reward accuracy  ↑", "share of pairs"),
        ("prefer", "group_hit", "Groups with the target  ↑", "share of rows"),
    )
    for kind, key, title, unit in wanted:
        of_kind = {phase: found for phase, found in steps.items() if phase.endswith(f"/{kind}")}
        rows = {phase: found for phase, found in of_kind.items() if any(row.get(key) is not None for row in found)}
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
    return draw((10, 2.7 * lines), paint, (0.5, 0.25, 0.1, 0.42)) if panels else ""


def _training_panel(axes: Axes, key: str, rows: Mapping[str, Sequence[Row]]) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    for at, (phase, found) in enumerate(rows.items()):
        colour = colormaps["cividis"](0.9 * at / max(1, len(rows) - 1))
        every = math.ceil(len(found) / MOST_POINTS)
        points = [found[start : start + every] for start in range(0, len(found), every)]
        x = [sum(value(row, "step") for row in part) / len(part) for part in points]
        y = [sum(value(row, key) for row in part) / len(part) for part in points]
        axes.plot(x, y, color=colour, linewidth=1.1, label=phase)
    if key in ("reward_accuracy", "group_hit"):
        axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=6.5, handlelength=1.2, ncols=1 + (len(rows) > 4))


def _squeeze(phases: Sequence[Span]) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    """Shorten long pauses: knots in true and in drawn seconds, and pauses as (where drawn, true seconds)."""
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
        legend(figure, handles)

    return draw((10, 1.0 + 0.55 * len(names)), paint, (0.75, 0.5, 0.1, 0.42))


def _fitting(phase: str, share: float) -> str:
    """Return as much of a phase's name as fits into a bar that takes ``share`` of the axes' width."""
    for text in (phase, phase.replace("/", "\n"), phase.split("/")[0]):
        if share > 0.0062 * max(map(len, text.split("\n"))):
            return text
    return ""
