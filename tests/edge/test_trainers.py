"""The board between the driver and the training workers: many who wait, a dismissal that comes early, silence."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrec.training.board import Board, Heartbeat, Phase
from tests.edge.conftest import ROOT

PHASE = Phase("p", "sft", "", "", "", 1, 2, 0.0, 0, 0.0, 1)


def test_a_group_that_is_dismissed_while_it_comes_up_leaves() -> None:
    async def story() -> list[Any]:
        board = Board()
        await board.post(PHASE)
        await board.dismiss()
        told = [await board.take(await board.next(), rank) for rank in range(2)]
        await board.open()
        up = [(await board.poll(0, 0.01)).up]
        told.append(await board.take(await board.next(), 1))
        up.append((await board.poll(0, 0.01)).up)
        await board.register_death("")
        up.append((await board.poll(0, 0.01)).up)
        deaths = [(await board.poll(0, 0.01)).deaths]
        await board.post(PHASE)
        return [*told, *up, *deaths, (await board.poll(1, 0.01)).deaths]

    assert asyncio.run(asyncio.wait_for(story(), 20)) == [None, None, PHASE, False, True, False, 1, 0]


def test_of_short_steps_the_board_gets_some(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[dict]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    actor = SimpleNamespace(report=SimpleNamespace(remote=lambda **facts: told.append(facts)))
    first, second = Heartbeat(actor, 0), Heartbeat(actor, 1)
    for step in range(1000):  # 2 s of them
        for beat in (first, second):
            beat(phase="01/sft" if step < 500 else "01/prefer", step=step)
        now[0] += 0.002
    assert [one["step"] for one in told if one["phase"] == "01/sft"] == [*range(0, 500, 50)]
    assert [one["step"] for one in told if one["phase"] == "01/prefer"] == [*range(500, 1000, 50)]


SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import psutil
from rayrec.cluster import connect  # before Ray, which else joins whatever cluster it finds
import ray
from rayrec.methods import parse
from rayrec.cluster.reserve import Reserved
from rayrec.errors import Stopped
from rayrec.report import terminal
from rayrec.runs.storage import Storage
from rayrec.training.board import Phase, give_up
from rayrec.training.group import TrainGroup, reason_of
from rayrec.training.worker import work

terminal.show_log()

class Quiet(TrainGroup):
    '''A group whose workers never come.'''
    def _fit(self):
        pass

class Work:
    storage, root = Storage(""), Path(sys.argv[1])

def kill_workers(killed, until):
    '''Every training worker dies as it comes up.'''
    while not until.wait(0.2):
        for process in psutil.Process().children(recursive=True):
            try:
                if process.name().startswith("ray::RayTrain") and process.pid not in killed:
                    process.kill()
                    killed.append(process.pid)
            except psutil.NoSuchProcess:
                pass

def refuse(setup):
    give_up(ValueError("no such model. Take another."), setup["board"], 0)

def starve(setup):
    import torch
    try:
        torch.empty(1 << 50)  # a petabyte
    except RuntimeError as error:
        give_up(error, setup["board"], 0)

def told(ask):
    try:
        return ask()
    except (Stopped, ValueError) as error:
        return f"{type(error).__name__}: {error}"

ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
workers = ["--train-workers", "80", "--batch", "80", "--prefer-batch", "80", "--pretrain-batch", "80"]
config = parse("", ["--preset", "toy", *workers, "--wait-seconds", "3", "--wait-for-resources", "1"])
group = Quiet(config, work, {}, Work(), False, Reserved())
phase = Phase("01/sft", "sft", "", "", "", 1, 80, 0.0, 0, 0.0, 1)
waiting = [group.board.take.remote(0, rank) for rank in range(80) for _ in range(3)]
time.sleep(1)
out = {"posted": told(lambda: group._ask(group.board.post.remote(phase), "01/sft"))}
out["taken"] = len(ray.get(waiting, timeout=30))
group.size = 80
out["silent"] = told(lambda: group.run(phase, None))
board = next(p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::Board"))
board.suspend()
out["stopped"] = told(lambda: group.run(phase, None))
board.resume()
group.close(True)
config = parse("", ["--preset", "toy", "--max-deaths", "0", "--wait-seconds", "120"])
killed, until = [], threading.Event()
threading.Thread(target=kill_workers, args=(killed, until), daemon=True).start()
group = TrainGroup(config, work, {"config": config, "base": "", "template": None}, Work(), False, Reserved())
out["never_up"] = told(lambda: group.run(phase, None))
until.set()
out["killed"] = len(killed)
config = parse("", ["--preset", "toy", "--wait-seconds", "120"])
for name, broken in (("refused", refuse), ("vast", starve)):
    group = TrainGroup(config, broken, {}, Work(), False, Reserved())
    out[name] = told(lambda: group.run(phase, lambda **beat: None))
    group.close(True)
out["reason"] = reason_of([ValueError("one\\ntwo")])
print("RESULT", json.dumps(out))
"""


@pytest.mark.slow
def test_whoever_waits_for_the_board_or_the_workers_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    out = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
    # 240 calls wait at the board, of three groups, two of them dead, and it still takes a phase.
    assert (out["posted"], out["taken"]) == (0, 240)
    reason, _, logs = out["reason"].partition("\nThe workers' own logs lie on their nodes, in ")
    assert reason == "ValueError: two" and Path(logs.removesuffix("."), "raylet.out").exists()
    assert "no heartbeat from the training workers for 2 s; given up after 4 s" in done.stdout, done.stdout
    # 3 s of silence, and 1 s more while no group is there.
    assert out["silent"].startswith("Stopped: 01/sft: no heartbeat from the training workers for 4 s")
    assert out["stopped"].startswith(
        "Stopped: 01/sft: the board, which hands phases to the workers, gave no answer for 3 s"
    )
    # A group that does not come up has died, and how often it may is limited.
    assert out["killed"] == 1
    start = "Stopped: 01/sft: the training workers are gone: a training worker of 1 died (1 of 0 allowed). Controller"
    assert out["never_up"].startswith(start) and "The workers' own logs lie" in out["never_up"]
    # An error that would come again is reported once, and is no death.
    assert out["refused"] == "ValueError: 01/sft: no such model. Take another."
    assert out["vast"].startswith("ValueError: 01/sft: out of memory: training worker 0 on ")
    assert "allocate 4503599627370496 bytes" in out["vast"] and "Lower --pass-memory, --micro-batch, " in out["vast"]
    assert "it is replaced" not in done.stdout
