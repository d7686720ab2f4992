"""``python -m rayrec.watch OUT.parquet…``: the metrics of lists that jobs/recommend.py wrote."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rayrec import fields
from rayrec.fields import POSITIVE
from rayrec.runs.manifest import write_json, write_text

#: Exit status where a limit is not kept.
PASSED = 3


@dataclass(frozen=True)
class WatchConfig:
    """Measure what is recommended; exits with 3 where a limit is not kept."""

    lists: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files of jobs/recommend.py."""
    catalogue: str
    """A run's catalogue.parquet, or a Parquet or CSV file with `title` and `popularity`."""
    outcomes: str | None = None
    """CSV or Parquet file with `user` and `title`: what users chose after their lists, for HR."""
    histories: str | None = None
    """Parquet or JSONL file with `user` and `history`, for MGU."""
    k: Annotated[int, POSITIVE] = 10
    """Places of a list that count."""
    limits: tuple[str, ...] = ()
    """Limits for the last period of every policy, such as 'ORRatio<0.2' 'DivRatio>0.05'."""
    out: str = "watch.html"
    """The page."""
    json: str | None = None
    """File for the numbers."""


def watch(config: WatchConfig) -> list[str]:
    """Measure, print and write; returns the limits that are not kept. ValueError: files or limits that do not fit."""
    from rich.console import Console
    from rich.table import Table

    from rayrec.report.terminal import plain
    from rayrec.watch import limits, lists, page
    from rayrec.watch.measures import measure

    fields.check(config)
    wanted = limits.parse(config.limits)
    items = lists.read_items(config.catalogue)
    outcomes = lists.read_outcomes(config.outcomes) if config.outcomes else {}
    histories = lists.read_histories(config.histories) if config.histories else {}
    shown = lists.read_lists(config.lists)
    watched = [measure(key, table, items, config.k, outcomes, histories) for key, table in shown.items()]
    wrong = limits.passed(watched, wanted)
    head, rows = page.table(watched)
    grid = Table(*head)
    for row in rows:
        grid.add_row(*map(plain, row))
    Console(width=None if sys.stdout.isatty() else 250).print(grid)
    write_text(Path(config.out), page.page(watched, config.k, wrong))
    if config.json:
        write_json(Path(config.json), [one.row() for one in watched])
    return wrong


def main(args: list[str] | None = None, prog: str = "python -m rayrec.watch") -> None:
    """Read a command line, measure, and exit with PASSED where a limit is not kept."""
    config = tyro.cli(WatchConfig, prog=prog, args=args)
    try:
        wrong = watch(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(config.out)
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(PASSED)


if __name__ == "__main__":
    main()
