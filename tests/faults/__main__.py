"""The fault matrix: ``make faults FAULTS_JSON=FILE`` strikes runs with every kind of fault at seeded moments.

Prints a record per fault and writes them all to FILE:

    kind        the kind of fault
    moment      the phase that it struck, and its progress
    seconds     from the end of the strike (such as a stop of 30 s) until that phase was finished
    landed      whether the phase was running
    identical   whether the run equals the undisturbed one
    error       last error line of a struck job
    left        processes, and placement groups of a cluster, that existed 15 s later

Exits with 1 unless every fault landed, every run is identical and nothing was left. With ``--runs`` the same command
again strikes only the faults of this seed that FILE lacks or that missed their phase.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.edge.conftest import Command, alive, contents, descendants, gone, read_trace, title
from tests.edge.test_runs import counted
from tests.faults.kinds import KINDS, TRAINING, Kind
from tests.faults.places import Place, place_of

#: More rows than the tests have, so that every phase lasts long enough to be struck.
ARGS = ["--decode", "greedy", "beams", "--keep", "all", "--checkpoint-steps", "10", "--no-share"]
ARGS += ["--checkpoint-seconds", "1", "--rows-per-iteration", "1024", "--test-rows", "1000"]
#: Titles of a run's processes on the nodes of a cluster that it joins.
OURS = (
    "ray::RayTrainWorker",
    "ray::Generator",
    "VLLM::EngineCore",
    "ray::Board",
    "ray::TrainController",
    "jobs/sprec.py",
)
#: A run in which one of two processes is struck.
PAIRS = ["--train-workers", "2", "--generators", "2"]
PHASES = ["00/pretrain", "00/sft", "00/evaluate"]
PHASES += [f"{t:02d}/{kind}" for t in (1, 2) for kind in ("negatives", "sft", "prefer", "evaluate")]


class Missed(Exception):
    """The phase was over before it was seen running."""


def suffer(name: str, kind: Kind, phase: str, place: Place, draw: random.Random, wanted: Path) -> dict:
    """Strike one run with one fault; returns the record.

    Raises:
        Missed: the run was not struck.
        AssertionError: the run did not end as it should.
    """

    def start() -> Command:
        return Command(place.runs, name, *ARGS, *place.args, *(PAIRS if kind.pairs else ()), **place.where)

    def working() -> set[int]:
        """The run's processes: the driver, its descendants, and those on the nodes of a cluster."""
        of_nodes = {pid for root in place.roots for pid in descendants(root) if any(w in title(pid) for w in OURS)}
        return {command.driver} | descendants(command.driver) | of_nodes

    place.env |= kind.env
    command = start()
    started, errors, left = set[int](), list[str](), set[str]()
    try:
        try:
            state = at_some_moment(command, phase, draw)
        except (AssertionError, KeyError) as error:
            raise Missed(str(error)) from error
        started = working()
        ours = {pid for pid in started if any(word in title(pid) for word in OURS)}
        landed = not command.finished(phase)
        place.struck = time.time()
        kind.strike(command, draw, place)
        begun = time.monotonic()
        if not kind.by_itself:
            landed &= command.process.wait(120) != 0  # a job that ended well was not struck
            errors = [line for line in command.log.read_text().splitlines() if line.startswith("error: ")]
            left |= lasting(ours)
            command = start()
            command.until(lambda trace: command.attempted(trace) and command.finished(phase), f"{phase} again")
            # The next start ends the other processes of a killed driver's cluster by their ids.
            left |= lasting(started, 1)
        else:
            if not command.finished(phase):  # a run may end during a strike of half a minute
                command.until(lambda trace: command.finished(phase), f"{phase} again")
        seconds = time.monotonic() - begun
        started |= working()
        command.wait()
        left |= lasting(started - place.unplugged) | {f"placement group {name}" for name in place.groups()}
        kept = place.kept(command.folder)
        same = contents(kept) == contents(wanted) and counted(kept) == counted(wanted)
        same &= (kept / "metrics.jsonl").read_bytes() == (wanted / "metrics.jsonl").read_bytes()
        events = [e for e in read_trace(command.folder)["traceEvents"] if (e["name"], e["cat"]) == (phase, "phase")]
        # Finding the process to strike takes a while.
        landed &= max((e["ts"] + e["dur"] for e in events), default=0) >= place.struck * 1e6
        moment = {"phase": phase, **{k: v for k, v in state.items() if k in ("step", "steps", "parts")}}
        found = {"moment": moment, "seconds": round(seconds, 1), "landed": landed, "identical": same}
        return found | {"left": sorted(left), "error": errors[-1] if errors else ""}
    finally:
        for pid in {command.process.pid} | alive(started | descendants(command.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def at_some_moment(command: Command, phase: str, draw: random.Random) -> dict:
    """Wait for a random moment of a phase; returns its progress."""
    if phase.split("/")[1] in TRAINING:
        return command.until_inside(phase, share=draw.uniform(0, 0.6))["running"][phase]
    command.until_inside(phase)
    time.sleep(draw.uniform(0, 1.5))  # a phase of generation lasts some seconds
    return read_trace(command.folder)["running"][phase]


def lasting(pids: set[int], seconds: float = 15) -> set[str]:
    """The processes that still exist after so many seconds."""
    gone(pids, seconds)
    return {f"{pid} {title(pid)}"[:200] for pid in alive(pids)}


def options() -> argparse.ArgumentParser:
    """The flags of this command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--faults", type=int, default=len(KINDS), help="number of faults; the kinds take turns")
    options.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, default=Path("faults.json"))
    options.add_argument("--runs", type=Path, default=None, help="folder of the runs; default: a temporary one")
    return options


def kinds_of(given: argparse.Namespace) -> list[str]:
    """The kind of each fault, in their order."""
    return [given.kinds[number % len(given.kinds)] for number in range(given.faults)]


def main() -> int:
    given = options().parse_args()
    runs = given.runs or Path(tempfile.mkdtemp(prefix="rayrec-faults-"))
    runs.mkdir(parents=True, exist_ok=True)
    kinds = kinds_of(given)
    wanted = {False: Command(runs, "undisturbed", *ARGS).wait()}
    if any(KINDS[name].pairs for name in kinds):
        wanted[True] = Command(runs, "undisturbed-pairs", *ARGS, *PAIRS).wait()
    records: list[dict] = json.loads(given.json.read_text()) if given.runs and given.json.exists() else []
    records = [r for r in records if r["landed"] and r["number"] < given.faults]
    records = [r for r in records if (r.get("seed"), r["kind"]) == (given.seed, kinds[r["number"]])]
    for number in sorted({*range(given.faults)} - {record["number"] for record in records}):
        name = kinds[number]
        kind, draw = KINDS[name], random.Random(f"{given.seed}/{number}")
        found: dict = {}
        for again in range(5):
            phase = draw.choice([p for p in PHASES if p.split("/")[1] in kind.phases])
            try:
                with place_of(kind.place, runs) as place:
                    found = suffer(f"fault-{number}{'abcde'[again]}", kind, phase, place, draw, wanted[kind.pairs])
            except (Missed, ProcessLookupError, AssertionError, subprocess.SubprocessError) as error:
                missed = isinstance(error, Missed | ProcessLookupError)  # it ended before the strike
                found = {"moment": {"phase": phase}, "landed": not missed, "error": str(error)[-2000:]}
            if found["landed"] or found.get("identical") is False or found.get("left"):
                break  # only a strike that came too late is repeated
        record = {"number": number, "seed": given.seed, "kind": name}
        records.append(record | {"seconds": None, "identical": False, "left": []} | found)
        print(json.dumps(records[-1]), flush=True)
        records.sort(key=lambda record: record["number"])
        given.json.write_text(json.dumps(records, indent=1) + "\n")
    good = [r for r in records if r["identical"] and r["landed"] and not r["left"]]
    print(f"{len(good)} of {len(records)} faults changed nothing; {given.json}")
    return 0 if len(good) == len(records) else 1


if __name__ == "__main__":
    sys.exit(main())
