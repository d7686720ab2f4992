"""The trace of a run: phases, parts and attempts with their times."""

import bisect
import logging
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayrec.runs.manifest import read_json, write_json

_log = logging.getLogger(__name__)

_EVENT = {"name", "cat", "ph", "ts", "dur", "pid", "args"}
#: Parts of a phase that are listed; further ones are counted, which bounds the file.
LISTED_PARTS = 1000


class Tracks:
    """Tracks of events that nest or follow each other: Perfetto drops an event that only overlaps another of its track.

    Events of one name come in the order of a file, and an event that begins with an earlier one has to lie inside it.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)  # (end, start), by end

    def place(self, lane: str, who: str, start: int, end: int) -> str:
        """Return the first of ``who``, ``who 2``, ``who 3`` and so on that has room for an event, and put it there."""
        number, name = 1, who
        while not self._fits(lane, name, start, end):
            number += 1
            name = f"{who} {number}"
        self.put(lane, name, start, end)
        return name

    def put(self, lane: str, track: str, start: int, end: int) -> None:
        """Put an event on a track."""
        bisect.insort(self._of[lane, track], (end, start))

    def _fits(self, lane: str, track: str, start: int, end: int) -> bool:
        events = self._of[lane, track]
        later = events[bisect.bisect_right(events, (start, end)) :]  # those that end after it begins
        return all(
            other >= end or (other <= start and end <= until) or (start < other and until <= end)
            for until, other in later
        )


class Trace:
    """Events in Chrome's trace format (Perfetto opens it), microseconds since the epoch; usable from any thread.

    ``pid`` is the lane and ``tid`` a track of it: events that overlap are on tracks of their own.
    """

    def __init__(self, path: Path):
        self._path, self._lock, self._written, self._took = path, threading.Lock(), 0.0, 0.0
        self._tracks = Tracks()
        self._events, self._attempts = self._read()
        self._running: dict[str, dict] = {}
        self._parts: Counter[str] = Counter()

    def _read(self) -> tuple[list[dict], list[dict]]:
        """Events and attempts of earlier starts; a file that is not a trace is renamed."""
        if not self._path.exists():
            return [], []
        try:
            old = read_json(self._path)
            events, attempts = list(old["traceEvents"]), list(old["attempts"])
            if not all({*event} >= _EVENT for event in events) or not all("start" in one for one in attempts):
                raise ValueError("an event lacks a field")
            for event in events:
                self._tracks.put(event["pid"], event.get("tid", ""), event["ts"], event["ts"] + event["dur"])
            return events, attempts
        except (ValueError, KeyError, TypeError):
            broken = self._path.with_name(f"{self._path.name}.broken")
            os.replace(self._path, broken)
            _log.info("%s: not readable. It is kept as %s, and a new one begun.", self._path, broken.name)
            return [], []

    def attempt(self, **facts: Any) -> None:
        """Add the start of a process that works on this run."""
        with self._lock:
            self._attempts.append({"start": time.time(), "pid": os.getpid(), **facts})
        self.flush()

    def add(self, name: str, category: str, lane: str, who: str, start: float, end: float, **facts: Any) -> None:
        """Add a finished event; ``start`` and ``end`` in seconds since the epoch."""
        begun, ended = round(start * 1e6), round(end * 1e6)
        event = {"name": name, "cat": category, "ph": "X", "ts": begun, "dur": ended - begun, "pid": lane}
        with self._lock:
            self._parts[name] += category == "part"
            if category == "part" and self._parts[name] > LISTED_PARTS:
                return
            self._events.append({**event, "tid": self._tracks.place(lane, who, begun, ended), "args": facts})
        self.flush(every=1.0)

    def progress(self, phase: str, **facts: Any) -> None:
        """Set the progress of a running phase, shown until the phase is added."""
        with self._lock:
            self._running[phase] = {"time": time.time(), **facts}
        self.flush(every=0.5)

    @contextmanager
    def phase(self, name: str, lane: str) -> Iterator[dict]:
        """Time a phase; facts put into the yielded dict become its arguments."""
        start, facts = time.time(), {}
        self.progress(name, started=start)
        self.flush()
        yield facts
        with self._lock:
            self._running.pop(name, None)
            unlisted = {n: c - LISTED_PARTS for n, c in self._parts.items() if n.startswith(name) and c > LISTED_PARTS}
            facts |= {"unlisted_parts": unlisted} if unlisted else {}
        self.add(name, "phase", lane, "lane", start, time.time(), **facts)
        self.flush()

    def facts(self, name: str) -> dict[str, Any]:
        """The value of one fact by the name of the event that has it; the last of equal names counts."""
        with self._lock:
            return {e["name"]: e["args"][name] for e in self._events if name in e["args"]}

    def flush(self, every: float = 0.0) -> None:
        """Write ``trace.json``, at most once in ``every`` seconds and for at most a twentieth of the time."""
        with self._lock:
            begun = time.monotonic()
            if every and begun - self._written < max(every, min(20 * self._took, 10.0)):
                return
            written = {"traceEvents": self._events, "running": self._running, "attempts": self._attempts}
            write_json(self._path, written | {"displayTimeUnit": "ms"})
            self._written = time.monotonic()
            self._took = self._written - begun
