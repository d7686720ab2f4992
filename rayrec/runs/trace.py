"""The trace of a run: phases, parts and attempts with their times."""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayrec.runs.manifest import read_json, write_json

_log = logging.getLogger(__name__)

_EVENT = {"name", "cat", "ph", "ts", "dur", "pid", "args"}
#: Parts of a phase that are listed; further ones are counted, which bounds the file.
LISTED_PARTS = 1000


class Trace:
    """Events in Chrome's trace format (Perfetto opens it), microseconds since the epoch; usable from any thread."""

    def __init__(self, path: Path):
        self._path, self._lock, self._written, self._took = path, threading.Lock(), 0.0, 0.0
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
        event = {"name": name, "cat": category, "ph": "X", "ts": round(start * 1e6), "dur": round((end - start) * 1e6)}
        with self._lock:
            self._parts[name] += category == "part"
            if category == "part" and self._parts[name] > LISTED_PARTS:
                return
            self._events.append({**event, "pid": lane, "tid": who, "args": facts})
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
