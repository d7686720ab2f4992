"""The trace: every event is on a track where Perfetto draws it."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rayrec.runs.trace import Trace


def dropped(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the complete events that Perfetto drops.

    Its importer sorts events by their begin and keeps the order of the file among equal ones. It keeps a stack of open
    events for each (pid, tid), closes those that end before the next begins, and drops one that ends after the event
    that it lies in.
    """
    stacks: dict[tuple[Any, Any], list[int]] = defaultdict(list)
    lost = []
    for event in sorted(events, key=lambda event: event["ts"]):
        stack, end = stacks[event["pid"], event["tid"]], event["ts"] + event["dur"]
        while stack and stack[-1] <= event["ts"]:
            stack.pop()
        if stack and stack[-1] < end:
            lost.append(event["name"])
            continue
        stack.append(end)
    return lost


def written(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["traceEvents"]


def test_the_check_drops_what_overlaps() -> None:
    def event(name: str, start: int, end: int, tid: str = "lane") -> dict[str, Any]:
        return {"name": name, "ts": start, "dur": end - start, "pid": "generators", "tid": tid}

    outer, inner, after = event("outer", 0, 10), event("inner", 0, 4), event("after", 10, 12)
    assert dropped([outer, inner, after]) == []
    assert dropped([outer, event("late", 5, 11)]) == ["late"]
    assert dropped([outer, event("late", 5, 11, "lane 2")]) == []
    assert dropped([inner, outer]) == ["outer"]


def test_phases_that_overlap_have_tracks_of_their_own(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    with trace.phase("01/evaluate", "generators"), trace.phase("02/negatives", "generators"):
        pass
    trace.add("03/negatives", "phase", "generators", "lane", 100.0, 104.0)
    trace.add("02/evaluate", "phase", "generators", "lane", 98.0, 106.5)  # begins before, and is added after
    trace.add("03/evaluate", "phase", "generators", "lane", 103.0, 110.0)
    trace.add("03/sft", "phase", "trainers", "lane", 101.0, 108.0)
    trace.flush()
    tracks = {event["name"]: (event["pid"], event["tid"]) for event in written(tmp_path / "trace.json")}
    assert tracks["03/negatives"] == tracks["02/evaluate"] == ("generators", "lane")  # one lies in the other
    assert (tracks["03/evaluate"], tracks["03/sft"]) == (("generators", "lane 2"), ("trainers", "lane"))
    assert dropped(written(tmp_path / "trace.json")) == []


def test_no_event_is_dropped_however_they_overlap_and_wherever_a_run_is_resumed(tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "trace.json"
    trace = Trace(path)
    for number in range(400):
        if number == 200:
            trace.flush()
            trace = Trace(path)
        start = round(number + draw.uniform(-5, 5), draw.choice([0, 3]))
        end = start + draw.choice([0, 1, 2, 3.0001, 7])
        trace.add(f"{number}", draw.choice(["part", "proof"]), "generators", draw.choice("ab"), start, end)
    trace.flush()
    assert len(written(path)) == 400 and dropped(written(path)) == []
