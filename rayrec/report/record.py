"""The files of a run folder, read and checked, as the report needs them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrec.report.changes import Change, changes
from rayrec.report.doubts import Doubt, found
from rayrec.report.lists import UserLists, user_lists
from rayrec.report.timeline import Span, spans
from rayrec.runs.manifest import read_json

#: Remedies of a damaged file that the run itself writes, and of damaged samples.
_AGAIN = "Remove it and run the same command again: finished phases are kept."
_WITHOUT = "The samples of this iteration are left out."


@dataclass(frozen=True)
class Record:
    """The content of a run folder."""

    folder: Path
    config: dict[str, Any]  #: config.json
    plan: dict[str, Any]  #: plan.json
    rows: list[dict[str, Any]]  #: lines of metrics.jsonl
    steps: dict[str, list[dict[str, Any]]]  #: training steps, by phase
    phases: list[Span]
    attempts: int  #: processes that worked on the run
    samples: dict[str, list[dict[str, Any]]]  #: sampled preference rows, by iteration
    lists: UserLists | None  #: lists of a few users before and after
    changes: list[Change]  #: metrics before and after
    unread: list[str]  #: why samples, lists or changes are left out
    to_do: list[str]  #: phases that are not finished
    doubts: list[Doubt]  #: what a reader of the numbers must know

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """The metric rows of some kinds, in the order of the run."""
        return [row for row in self.rows if row["kind"] in kinds]


def read_run(folder: Path) -> Record:
    """Read a run folder; ValueError names a missing or damaged file and the remedy."""
    config, plan = read_json(folder / "config.json", _AGAIN), read_json(folder / "plan.json", _AGAIN)
    finished = {str(path.parent.relative_to(folder)) for path in folder.glob("*/*/DONE")}
    planned = [str(row["phase"]) for row in plan.get("phases") or [] if "phase" in row]
    done = [phase for phase in planned if phase in finished] + sorted(finished - set(planned))
    to_do = [phase for phase in planned if phase not in finished]
    trace = read_json(folder / "trace.json", _AGAIN) if not to_do or (folder / "trace.json").exists() else {}
    try:
        phases = spans(trace.get("traceEvents") or [])
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'trace.json'}: {error} {_AGAIN}") from error
    metrics = {phase: read_json(folder / phase / "metrics.json", _AGAIN) for phase in done}
    steps = {phase: one["steps"] for phase, one in metrics.items() if one.get("steps")}
    samples, unread = {}, []
    for iteration in (phase.split("/")[0] for phase in done if phase.endswith("/prefer")):
        path = folder / iteration / "samples.json"
        if path.exists() or not to_do:
            try:
                samples[iteration] = read_samples(path)
            except ValueError as error:
                unread.append(str(error))
    recorded = any(one.get("records") for one in metrics.values())
    rows = read_lines(folder / "metrics.jsonl") if recorded or (folder / "metrics.jsonl").exists() else []
    lists, changed = None, list[Change]()
    try:
        lists = user_lists(folder, rows)
        changed = changes(folder, rows)
    except ValueError as error:
        unread.append(str(error))
    return Record(
        folder=folder,
        config=config,
        plan=plan,
        rows=rows,
        steps=steps,
        phases=phases,
        attempts=len(trace.get("attempts") or []),
        samples=samples,
        lists=lists,
        changes=changed,
        unread=unread,
        to_do=to_do,
        doubts=found(metrics.values()),
    )


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read the sampled rows of an iteration, on which no number depends; ValueError if missing or damaged."""
    rows, wanted = read_json(path, _WITHOUT, list), {"chosen", "history", "rejected"}
    for row in rows:
        if not isinstance(row, dict) or wanted - row.keys() or {type(row["history"]), type(row["rejected"])} != {list}:
            raise ValueError(f"{path}: wanted a list of {{example_id, history, chosen, rejected}}. {_WITHOUT}")
    return rows


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl; ValueError names a damaged one and the remedy."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}), though phases are finished. {_AGAIN}") from error
    rows = []
    for at, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {at}: not readable as JSON ({error}). {_AGAIN}") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise ValueError(f"{path}, line {at}: found {line[:80]!r}, wanted an object with a kind. {_AGAIN}")
        rows.append(row)
    return rows
