"""Times of the phases, from ``trace.json``: which lane worked, which waited, and for what."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

#: A shorter pause is scheduling, not waiting; in seconds.
SHORTEST_WAIT = 0.05


@dataclass(frozen=True)
class Span:
    """One phase in its lane; ``start`` and ``end`` in seconds since the first phase began."""

    phase: str
    lane: str
    start: float
    end: float
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Wait(Span):
    """A lane was idle before ``phase``, which needed ``cause`` of another lane (None: a start, or between attempts)."""

    cause: Span | None = None


def spans(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    """Return the phases of Chrome trace ``events`` (microseconds) by start; ValueError if one lacks a field."""
    found = []
    for event in events:
        if event.get("cat") != "phase" or event.get("ph", "X") != "X":
            continue
        try:
            start, length = float(event["ts"]) / 1e6, float(event["dur"]) / 1e6
            found.append(Span(str(event["name"]), str(event["pid"]), start, start + length, event.get("args") or {}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"A phase of the trace needs name, pid, ts and dur, but is {dict(event)!r:.200}."
            ) from error
    zero = min((span.start for span in found), default=0.0)
    moved = [replace(span, start=span.start - zero, end=span.end - zero) for span in found]
    return sorted(moved, key=lambda span: (span.start, span.lane))


def waits(phases: Sequence[Span]) -> list[Wait]:
    """Return every pause of a lane before one of its phases, with the phase of another lane that ended it."""
    found = []
    for lane in dict.fromkeys(span.lane for span in phases):
        free = 0.0
        for span in (span for span in phases if span.lane == lane):
            if span.start - free > SHORTEST_WAIT:
                others = [o for o in phases if o.lane != lane and free < o.end <= span.start + SHORTEST_WAIT]
                cause = max(others, key=lambda other: other.end, default=None)
                found.append(Wait(span.phase, lane, free, span.start, cause=cause))
            free = max(free, span.end)
    return found


def busy(phases: Iterable[Span]) -> list[tuple[float, float]]:
    """Return the times at which any of ``phases`` runs, as disjoint intervals in seconds."""
    merged: list[tuple[float, float]] = []
    for span in sorted(phases, key=lambda span: span.start):
        if merged and span.start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], span.end))
        else:
            merged.append((span.start, span.end))
    return merged


class Overlap(NamedTuple):
    """Seconds in which any lane worked, in which at least two did, and the mean number of lanes at work."""

    working: float
    together: float
    lanes: float


def overlap(phases: Sequence[Span]) -> Overlap:
    """Measure how long the lanes worked at the same time, which does not show how much each slowed the others down."""
    by_lane = [busy(s for s in phases if s.lane == lane) for lane in dict.fromkeys(s.lane for s in phases)]
    edges = sorted((at, step) for lane in by_lane for start, end in lane for at, step in ((start, 1), (end, -1)))
    working = together = total = 0.0
    running, before = 0, 0.0
    for at, step in edges:
        working += (at - before) * (running > 0)
        together += (at - before) * (running > 1)
        total += (at - before) * running
        running, before = running + step, at
    return Overlap(working, together, total / working if working else 0.0)


def placed(events: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return {lane: addresses of the nodes of its processes}, in the order of their first work."""
    found: dict[str, dict[str, None]] = {}
    for event in events:
        for node in event["args"].get("nodes", ()):
            found.setdefault(event["pid"], {})[node] = None
    return {lane: list(nodes) for lane, nodes in sorted(found.items())}


def peaks(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return {lane: most bytes of memory that one of its processes has held}."""
    found: dict[str, int] = {}
    for event in events:
        if most := event["args"].get("peak_memory"):
            found[event["pid"]] = max(most, found.get(event["pid"], 0))
    return dict(sorted(found.items(), reverse=True))


def by_iteration(phases: Sequence[Span]) -> dict[int, tuple[float, float]]:
    """Return {iteration: (wall seconds, mean number of lanes at work, for any iteration)} of its phases `NN/...`."""
    groups: dict[int, list[Span]] = {}
    for span in phases:
        iteration = span.phase.split("/")[0]
        if iteration.isdigit():
            groups.setdefault(int(iteration), []).append(span)
    found = {}
    for iteration, group in sorted(groups.items()):
        start, end = min(span.start for span in group), max(span.end for span in group)
        inside = [replace(s, start=max(s.start, start), end=min(s.end, end)) for s in phases]
        found[iteration] = end - start, overlap([span for span in inside if span.seconds > 0]).lanes
    return found
