"""The watch's output: a table for the terminal, and one page without script or network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayrec.metrics.intervals import Interval
from rayrec.report.figures.drawing import SERIES, draw, legend
from rayrec.report.page import render
from rayrec.watch.measures import MEASURES, Watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(watched: Sequence[Watched]) -> tuple[list[str], list[list[str]]]:
    """Head and cells, without the measures that are undefined everywhere."""
    names = [name for name in MEASURES if any(one.measures[name].value is not None for one in watched)]
    rows = [
        [one.key.policy, one.key.period, f"{one.lists:,}", *(_cell(one.measures[name]) for name in names)]
        for one in watched
    ]
    return ["policy", "period", "lists", *names], rows


def page(watched: Sequence[Watched], k: int, wrong: Sequence[str]) -> str:
    """The page as HTML; every text in it is escaped."""
    head, rows = table(watched)
    return render("watch.html", k=k, head=head, rows=rows, wrong=wrong, lines=_lines(watched, head[3:]))


def _cell(found: Interval) -> str:
    if found.value is None:
        return "–"
    return f"{found.value:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.low is not None else "")


def _lines(watched: Sequence[Watched], names: Sequence[str]) -> str:
    """Every measure over the periods, one line per policy."""
    periods = sorted({one.key.period for one in watched})
    policies = list(dict.fromkeys(one.key.policy for one in watched))[: len(SERIES)]
    columns = 3
    lines = math.ceil(len(names) / columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, sharex=True, squeeze=False, gridspec_kw={"wspace": 0.25, "hspace": 0.3})
        for axes, name in zip(grid.flat, names, strict=False):
            for policy, (colour, marker) in zip(policies, SERIES, strict=False):
                own = [one for one in watched if one.key.policy == policy and one.measures[name].value is not None]
                x = [periods.index(one.key.period) for one in own]
                found = [one.measures[name] for one in own]
                axes.plot(x, [one.value for one in found], color=colour, marker=marker, label=policy, clip_on=False)
                bars = [(at, one) for at, one in zip(x, found, strict=True) if one.low is not None]
                axes.vlines([at for at, _ in bars], [b.low for _, b in bars], [b.high for _, b in bars], color=colour)
            axes.set_title(name)
            axes.set_xticks(range(len(periods)), periods, rotation=30 if len(periods) > 2 else 0)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        legend(figure, grid.flat[0].get_legend_handles_labels()[0])

    return draw((10, 1.0 + 1.9 * lines), paint, (0.45, 0.5, 0.1, 0.6))
