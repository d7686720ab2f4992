"""Output for the terminal or the job's log: the plan, one progress line per lane, and the tables.

Text from data is never read as markup, and its control characters are shown. A pipe or a log gets plain lines.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rayrec.report.lists import UserLists
from rayrec.report.rows import Row, default_k, explained, grouped, label, number, pairs, shown

LANES = ("trainers", "generators")
#: Width of output that goes to a file or a job's log, in characters, and of a table with every metric.
LOG_WIDTH, TABLE_WIDTH = 120, 144
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _console(width: int = LOG_WIDTH) -> Console:
    """A console on the current stdout, which may have been redirected since the last call."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False, emoji=False)


def plain(value: object) -> Text:
    """Return ``value`` as text that no markup or control character can change: a line feed prints as ``\\n``."""
    return Text(_CONTROL.sub(lambda match: repr(match[0])[1:-1], str(value)))


def size(count: float | None) -> str:
    """Return a count of bytes with a binary unit."""
    if count is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def span(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    for limit, unit, each in ((100, "s", 1), (6000, "min", 60)):
        if seconds < limit:
            return f"{seconds / each:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"


def log(phase: str, text: str, console: Console | None = None) -> None:
    """Print one line of the run: the time of day, the phase's name, and what happened."""
    line = Text.assemble((time.strftime("%H:%M:%S"), "dim"), "  ", (f"{plain(phase)!s:<14}", "bold"), " ", plain(text))
    (console or _console()).print(line, soft_wrap=True)


class _Lines(logging.Handler):
    """Prints each record as a line on the current stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{warning}{record.getMessage()}", flush=True)


def show_log() -> None:
    """Print the log records of rayrec from INFO on; a second call changes nothing."""
    logger = logging.getLogger("rayrec")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
        logger.setLevel(logging.INFO)


def _grid(title: str, *columns: str, left: int = 1) -> Table:
    """A table without lines: the first ``left`` columns are text, the others are numbers."""
    table = Table(title=plain(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at < left else "right", no_wrap=at >= left)
    return table


def print_plan(plan: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the phases of a run and its needs, before anything starts.

    ``plan`` may hold ``folder``, ``rows`` {split: rows}, ``counts`` {reason: rows}, ``model`` {name, parameters,
    template, lora_rank}, ``resources`` {train_workers, generators, device, threads, cpus}, ``disk_bytes``, further
    ``lines`` {name: text}, ``phases`` (a list of {phase, rows, batches, tokens, epochs, seconds}), and, where a run is
    resumed, the phase names ``done`` and ``to_do``. Absent entries are not printed.
    """
    console = console or _console()
    done, to_do = plan.get("done") or (), plan.get("to_do") or ()
    following = f", next {to_do[0]}" if to_do else ""
    lines = {
        "folder": plan.get("folder"),
        "rows": pairs(plan.get("rows") or {}),
        "counts": pairs(plan.get("counts") or {}),
        "model": _model(plan.get("model") or {}),
        "resources": pairs(plan.get("resources") or {}),
        "disk": size(plan["disk_bytes"]) if plan.get("disk_bytes") is not None else None,
        **plan.get("lines", {}),
        "resumes": f"phases done {len(done)}, to do {len(to_do)}{following}" if done else None,
    }
    console.print(Text("Plan", style="bold"))
    console.print(_facts({name: plain(value) for name, value in lines.items() if value}))
    if plan.get("settings"):
        table = _grid("Set by preset, method and command", "setting", "here", "default", left=3)
        for one in plan["settings"]:
            table.add_row(*map(plain, one.values()))
        console.print(table)
    phases = plan.get("phases") or ()
    keys = ("rows", "epochs", "batches", "tokens", "seconds")
    keys = [key for key in keys if any(row.get(key) is not None for row in phases)]
    table = _grid("Phases", "phase", *keys, *(["state"] if done else []))
    for row in phases:
        state = [Text("done" if row.get("phase") in done else "to do")] if done else []
        table.add_row(plain(row.get("phase", "–")), *(number(row.get(key)) for key in keys), *state)
    if phases:
        console.print(table)


def _facts(lines: Mapping[str, Text]) -> Padding:
    """Names and texts in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in lines.items():
        grid.add_row(name, text)
    return Padding(grid, (0, 0, 1, 0))


def _model(model: Mapping[str, Any]) -> str:
    name, parameters, rank, template = map(model.get, ("name", "parameters", "lora_rank", "template"))
    parts = [
        name,
        None if parameters is None else f"{number(parameters)} parameters",
        None if rank is None else f"LoRA rank {rank}" if rank else "every parameter is trained",
        f"template {template}" if template else None,
    ]
    return ", ".join(filter(None, parts))


def print_iteration_table(rows: Sequence[Row], k: int | None = None, console: Console | None = None) -> None:
    """Print a line per policy (rows of ``metrics.jsonl``): metrics, seconds, and overlap (mean of busy lanes).

    Rows of another split, decoder, embedder or N have a table of their own. ``k`` is 5, or the largest computed.
    """
    console = console or _console(TABLE_WIDTH)
    groups = grouped(rows)
    for title, members in groups.items():
        at = k or default_k(members)
        keys = [metric.key(at) for metric in shown(members, [at]) if metric.brief]
        table = _grid(title, "policy", *keys, "seconds", "overlap")
        for row in members:
            overlap = row.get("overlap")
            times = number(row.get("seconds"), 1), "–" if overlap is None else f"{overlap:.2f} ×"
            table.add_row(plain(label(row)), *(number(row.get(key)) for key in keys), *times)
        console.print(table)
    for line in explained(next(iter(groups.values()), []), k):
        console.print(plain(line))


def print_samples(samples: Sequence[Mapping[str, Any]], title: str = "Samples", console: Console | None = None) -> None:
    """Print sampled preference rows: ``history`` (titles, oldest first), ``chosen`` and ``rejected`` (titles)."""
    console = console or _console()
    console.print(Text(title, style="bold"))
    for sample in samples:
        lines = {
            "history": Text(" · ").join(plain(item) for item in sample.get("history") or ()),
            "chosen": plain(sample.get("chosen", "–")),
            "rejected": Text("\n").join(plain(item) for item in sample.get("rejected") or ("–",)),
        }
        console.print(_facts(lines))


def print_lists(lists: UserLists, console: Console | None = None) -> None:
    """Print what a few users chose next and their first three titles by two policies; a star marks a hit."""
    table = _grid(f"{len(lists.users)} users: {lists.title}", "chose next", lists.first, lists.last, left=3)
    for user in lists.users:
        both = (user.before, user.after)
        cells = [Text("\n").join(_marked(title, user.target) for title in one[:3] or ["none"]) for one in both]
        table.add_row(plain(user.target), *cells, end_section=True)
    (console or _console(TABLE_WIDTH)).print(table)


def _marked(title: str, target: str) -> Text:
    return Text("* " if title == target else "  ") + plain(title)


@dataclass
class _Running:
    lane: str
    total: int
    unit: str
    started: float
    printed: float
    first: tuple[int, float] | None = None
    """Units that were done at the first update, where a phase may go on from a checkpoint, and when."""
    shown: int = -1
    """Units that the last line names."""

    def left(self, done: int, now: float) -> str:
        """The time left, by the pace since the first update; empty before there is one."""
        self.first = self.first or (done, now)
        units, seconds = done - self.first[0], now - self.first[1]
        return f"{span((self.total - done) * seconds / units)} left" if units > 0 and done < self.total else ""


class LaneProgress:
    """One progress line per lane: a live bar in a terminal, elsewhere a plain line at most every ``every`` seconds.

    Where nothing more is done, a line comes six times less often.
    ``start`` a phase in a lane, ``update`` it with the units done, ``finish`` it, from any thread. Where two phases
    share a lane, its bar shows the one that was updated last. ``phases``: all phases of the
    run in their order, by which its lines say that one is phase n of m.
    """

    def __init__(
        self,
        lanes: Sequence[str] = LANES,
        every: float = 5.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        phases: Sequence[str] = (),
    ) -> None:
        self.console, self._phases = console or _console(), phases
        self._every, self._clock, self._lock = every, clock, threading.RLock()
        self._running: dict[str, _Running] = {}
        columns = (
            TextColumn("{task.fields[lane]:<10}", markup=False),
            TextColumn("{task.description:<14}", markup=False, style="bold"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._tasks = {
            lane: self._bars.add_task("waits", total=None, start=False, lane=lane, note="") for lane in lanes
        }

    def __enter__(self) -> LaneProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def log(self, phase: str, text: str) -> None:
        """Print one line of the run above the bars."""
        log(phase, text, self.console)

    def start(self, lane: str, phase: str, total: int, unit: str = "steps") -> None:
        """Begin ``phase`` of ``total`` units in ``lane``."""
        with self._lock:
            self._running[phase] = _Running(lane, total, unit, self._clock(), self._clock())
            self._bars.reset(self._tasks[lane], total=total, description=str(plain(phase)), lane=lane, note=unit)
            if self._bars.disable:
                self._line(phase, f"starts: {number(total)} {unit}{self._place(phase)}")

    def update(self, phase: str, done: int, note: str = "") -> None:
        """Show that ``done`` units of the phase are complete; ``note`` is short, such as the loss."""
        with self._lock:
            if phase not in self._running:  # a report that came after the phase's end
                return
            running = self._running[phase]
            left = running.left(done, self._clock()) if done else ""
            about: dict[str, Any] = {"total": running.total, "description": str(plain(phase))}
            shown = " ".join(part for part in (running.unit, note, left) if part)
            about["note"] = str(plain(shown + self._place(phase)))
            self._bars.update(self._tasks[running.lane], completed=done, **about)
            every = self._every * (1 if done != running.shown else 6)
            if self._bars.disable and self._clock() - running.printed >= every:
                running.shown = done
                text = f"{number(done)}/{number(running.total)} {running.unit}"
                self._line(phase, ", ".join(part for part in (text, note, left) if part))

    def finish(self, phase: str, note: str = "") -> None:
        """End the phase; its lane then waits, unless another of its phases is at work."""
        with self._lock:
            running = self._running[phase]
            seconds = self._clock() - running.started
            text = f"done: {number(running.total)} {running.unit} in {seconds:.1f} s" + (f", {note}" if note else "")
            self._line(phase, text)
            del self._running[phase]
            if not any(other.lane == running.lane for other in self._running.values()):
                waiting: dict[str, Any] = {"description": "waits", "lane": running.lane, "note": ""}
                self._bars.reset(self._tasks[running.lane], start=False, total=None, **waiting)

    def _place(self, phase: str) -> str:
        """``, phase n of m`` of a phase of the run."""
        return f", phase {self._phases.index(phase) + 1} of {len(self._phases)}" if phase in self._phases else ""

    def _line(self, phase: str, text: str) -> None:
        running = self._running[phase]
        running.printed = self._clock()
        self.log(phase, f"{running.lane:<10}  {text}")
