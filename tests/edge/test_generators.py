"""The pool of generators on a real Ray: what counts as a death, and what is told of an actor that hangs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from tests.edge.conftest import ROOT

SCRIPT = """
import json, os, sys, time
from pathlib import Path
from rayrec import cluster, generators  # before Ray, which else joins whatever cluster it finds
import ray
from ray.exceptions import ObjectFreedError, ObjectLostError
from rayrec.engines import Setup
from rayrec.generators import GeneratorPool, Part, is_death
from rayrec.methods import parse
from rayrec.reserve import reserve
from rayrec.storage import Storage

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
        if part.number == 1 and self.once("engine"):
            raise EngineDeadError
        if part.number == 2 and self.once("silence"):
            time.sleep(60)
        if part.number == 3 and self.once("exit"):
            os._exit(1)
        if part.phase == "wrong":
            raise ArithmeticError("part is wrong")
        return [[part.number]], {"start": 0.0, "end": 0.0}

class Trace:
    def add(self, *args, **facts):
        pass

generators.Generator = Written
ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
config = parse("", ["--preset", "toy", "--generators", "2", "--wait-seconds", "4", "--wait-for-resources", "60"])
setup = Setup(config, Storage(""), "", None, (), False, "torch", 1)
pool = GeneratorPool(setup, Trace(), reserve(config, False, train=False))

def ask(phase, count):
    return dict(pool.ask(count, lambda i: Part(phase, i, "1", "", (), "greedy")))

out = {"made": sorted(ask("01/negatives", 5))}
for when in ("then", "later"):
    try:
        ask("wrong", 2)
    except BaseException as error:
        out[when] = type(error).__name__
lost = ObjectLostError("00" * 28, "", ""), ObjectFreedError("00" * 28, "", "")
out["deaths"] = [is_death(error) for error in (*lost, ValueError(), ConnectionError())]
pool.close(orderly=True)
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
    said = [line.split(" (")[0].split(" ", 2)[2] for line in done.stdout.splitlines() if "it is replaced" in line]
    assert sorted(said) == [
        "died in 01/negatives part 1",
        "died in 01/negatives part 3",
        "gave no answer for 4 s in 01/negatives part 2",
    ]
    # A part that cannot be answered is no death, and whoever asks afterwards hears of it too.
    assert out["then"] == out["later"] == "RayTaskError(ArithmeticError)"
    assert out["deaths"] == [True, True, False, False]
