"""Actors on a real Ray, generators and the oracle: what counts as a death, and what is told of one that hangs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from tests.edge.conftest import ROOT

SCRIPT = """
import json, os, sys, time
from pathlib import Path
from rayrec.training import oracle  # before Ray, which else joins whatever cluster it finds
from rayrec.cluster import connect
from rayrec.generation import pool
import ray
from ray.exceptions import ActorUnschedulableError, ObjectFreedError, ObjectLostError, OutOfMemoryError
from rayrec.generation.engine import Setup
from rayrec.generation.pool import GeneratorPool, Part, is_death
from rayrec.methods import parse
from rayrec.cluster.reserve import reserve
from rayrec.runs.storage import Storage

folder = Path(sys.argv[1])

class EngineDeadError(Exception):
    '''As vLLM's, whose import takes many seconds in every actor.'''

class Written:
    '''Answers like a Generator; each trouble comes once.'''
    def __init__(self, setup):
        pass
    def ready(self):
        return {}
    def once(self, trouble):
        file = folder / trouble
        first = not file.exists()
        file.touch()
        return first
    def answer(self, part):
        if part.phase == "full":
            raise OSError(28, "No space left on device")
        if part.phase == "deadly":
            os._exit(1)
        if part.number == 1 and self.once("engine"):
            raise EngineDeadError
        if part.number == 2 and self.once("silence"):
            time.sleep(60)
        if part.number == 3 and self.once("exit"):
            os._exit(1)
        if part.phase == "wrong":
            raise ArithmeticError("part is wrong")
        return [[part.number]], {"start": 0.0, "end": 0.0}
    def sleep(self):
        self.once("slept")

class Idle:
    '''Stands still, and answers.'''
    def fit(self):
        time.sleep(600)
    def passes(self):
        return 7

class Trace:
    def add(self, *args, **facts):
        pass

generators.Generator = Written
ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
flags = ["--generators", "2", "--wait-seconds", "4", "--wait-for-resources", "60", "--placement", "shared"]
config = parse("", ["--preset", "toy", *flags])
setup = Setup(config, Storage(""), "", None, (), False, "torch", 1)
generators._WORD = 1.0
reserved = reserve(config, False, train=False)

def ask(phase, count):
    return dict(pool.ask(count, lambda i: Part(phase, i, "1", "", (), "greedy")))

def told(phase, count):
    try:
        ask(phase, count)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

pool = GeneratorPool(setup, Trace(), reserved)
out = {"made": sorted(ask("01/negatives", 5))}
deadline = time.monotonic() + 30  # the last actor that took a dead one's place comes up first
while not (folder / "slept").exists() and time.monotonic() < deadline:
    time.sleep(0.1)
out["slept"] = (folder / "slept").exists()
out["then"], out["later"] = told("wrong", 2), told("wrong", 2)
pool.close(orderly=True)
pool, given = GeneratorPool(setup, Trace(), reserved), []
slow = pool.ask(300, lambda i: given.append(i) or Part("slow", i + 10, "1", "", (), "greedy"))
next(slow)
time.sleep(3)
out["given"] = len(given)
out["urgent"] = len(dict(pool.ask(9, lambda i: Part("urgent", i + 10, "1", "", (), "greedy"), True)))
out["taken"] = 1 + sum(1 for _ in slow)
pool.close(orderly=True)
pool = GeneratorPool(setup, Trace(), reserved)
out["full"] = told("full", 1)
pool.close(orderly=True)
pool = GeneratorPool(setup, Trace(), reserved)
out["deadly"] = told("deadly", 1)
pool.close(orderly=True)
oracle._ASK, oracle._WORD = 0.2, 1.0
idle = ray.remote(Idle).options(num_cpus=0, max_concurrency=2).remote()
try:
    oracle._listen(idle, idle.fit.remote(), 3.0)
except oracle.Stopped as error:
    out["idle"] = str(error)
lost = ObjectLostError("00" * 28, "", ""), ObjectFreedError("00" * 28, "", "")
gone = OutOfMemoryError(""), ActorUnschedulableError("")
out["deaths"] = [is_death(error) for error in (*lost, *gone, ValueError(), ConnectionError())]
print("RESULT", json.dumps(out))
"""


def test_vllms_error_has_the_name_that_we_look_for() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    assert "class EngineDeadError(" in (Path(spec.origin).parent / "v1" / "engine" / "exceptions.py").read_text()


def test_an_actor_whose_engine_is_dead_or_that_hangs_is_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    out = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
    assert out["made"] == [0, 1, 2, 3, 4]
    said = re.findall(r"generator \d (.* in 01/negatives part \d) \(.*it is replaced", done.stdout)
    assert sorted(said) == [
        "died in 01/negatives part 1",
        "died in 01/negatives part 3",
        "gave no answer for 4 s in 01/negatives part 2",
    ]
    assert "has been in 01/negatives part 2 for 1 s" in done.stdout.replace("for 2 s", "for 1 s")
    assert out["slept"]  # the pool had nothing to do, and its cards are shared with training
    # A part that cannot be answered is no death, and whoever asks afterwards hears of it too.
    assert out["then"] == out["later"] and out["then"].startswith("RayTaskError(ArithmeticError)")
    # Answers that nobody takes hold up their own phase alone; 64 lie there, and one is at each of two generators.
    assert 65 <= out["given"] <= 68 and out["urgent"] == 9 and out["taken"] == 300
    assert out["full"] == "OSError: [Errno 28] No space left on device"
    # A part that kills whoever has it ends the run, whichever seats it comes to.
    deadly = re.findall(r"died in deadly part 0 \((\d) of 3 allowed\): it is replaced", done.stdout)
    assert deadly == ["1", "2", "3"]
    assert out["deadly"].split("(")[0].endswith("died in deadly part 0 ") and "(4 of 3 allowed)" in out["deadly"]
    assert out["idle"] == "00/oracle: the process that trains it has done nothing for 3 s"
    assert "has done nothing for 1 s" in done.stdout
    assert out["deaths"] == [True, True, True, True, False, False]
