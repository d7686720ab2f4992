"""A pool of generators with a fake engine on a Ray of its own, started by test_generators.py; prints what happened."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import ray
from ray.exceptions import ActorUnschedulableError, ObjectFreedError, ObjectLostError, OutOfMemoryError

from rayrec.cluster.reserve import reserve
from rayrec.generation.engine import Answer, Part, Setup
from rayrec.generation.pool import GeneratorPool, is_death
from rayrec.methods import parse
from rayrec.models.policy import load_tokenizer
from rayrec.models.tiny import make_tiny
from rayrec.prompts import make_template
from rayrec.report.terminal import show_log
from rayrec.runs.storage import Storage
from rayrec.runs.trace import Trace
from tests.generation.fake_engine import Batching, FakeEngine

TITLES = ["Red River", "Blue House"]


def main(folder: Path) -> dict:
    """Ask pools for parts; returns what came of it."""
    show_log()
    flags = ["--generators", "2", "--wait-seconds", "4", "--wait-for-resources", "60", "--placement", "shared"]
    config = parse("", ["--preset", "toy", "--tiny-hidden", "32", "--tiny-vocab", "300", *flags])
    make_tiny(TITLES, config.model, folder, 0)
    template = make_template("compact", load_tokenizer(folder))
    setup = Setup(config, Storage(""), str(folder), template, (), False, FakeEngine, 1)
    reserved, trace = reserve(config, False, train=False), Trace(folder / "trace.json")
    titles = [template.answer_ids(title) for title in TITLES]

    def pool_of() -> GeneratorPool:
        return GeneratorPool(setup, trace, reserved, warn_after=1.0)

    def part(phase: str, number: int) -> Part:
        return Part(phase, number, "base", str(folder), titles, "greedy", seed=number)

    def answers(pool: GeneratorPool, phase: str, count: int) -> dict[int, list[list[Answer]]]:
        return dict(pool.ask(count, lambda i: part(phase, i)))

    def error(pool: GeneratorPool, phase: str, count: int) -> str:
        try:
            answers(pool, phase, count)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    pool, out = pool_of(), {}
    out["made"] = sorted(answers(pool, "01/negatives", 5).items())
    pool.rest()  # the last actor that took a dead one's place comes up first
    out["slept"] = (folder / "slept").exists()
    answers(pool, "01/evaluate", 2)
    out["woken"] = (folder / "woken").exists()
    out["then"], out["later"] = error(pool, "wrong", 2), error(pool, "wrong", 2)
    pool.close(orderly=True)

    pool, given = pool_of(), list[int]()

    def noted(i: int) -> Part:
        given.append(i)
        return part("slow", i + 10)

    slow = pool.ask(300, noted)
    next(slow)
    time.sleep(3)
    out["given"] = len(given)
    out["urgent"] = len(dict(pool.ask(9, lambda i: part("urgent", i + 10), True)))
    out["taken"] = 1 + sum(1 for _ in slow)
    pool.close(orderly=True)

    pool = GeneratorPool(dataclasses.replace(setup, engine=Batching), trace, reserved)
    batched = pool.ask(12, lambda i: part("batched", i + 10))
    out["batched"] = sorted((i, [one.logprob for [one] in answers]) for i, answers in batched)
    versions = ("base", "other", "base", "base", "third", "other")
    mixed = pool.ask(6, lambda i: dataclasses.replace(part("mixed", i + 30), version=versions[i]))
    out["mixed"] = sorted(i for i, _ in mixed)
    pool.close(orderly=True)
    out["inside"] = sorted(path.name for path in folder.glob("inside-*"))

    for phase in ("full", "deadly", "refused", "vast"):
        pool = pool_of()
        out[phase] = error(pool, phase, 1)
        pool.close(orderly=True)
    pool = pool_of()
    pool.rest()
    (folder / "stuck").touch()
    out["asked"] = error(pool, "01/evaluate", 1)
    try:
        pool.rest()
    except Exception as found:
        out["stuck"] = str(found)
    pool.close(orderly=True)
    lost = ObjectLostError("00" * 28, "", ""), ObjectFreedError("00" * 28, "", "")
    gone = OutOfMemoryError(""), ActorUnschedulableError("")
    out["deaths"] = [is_death(one) for one in (*lost, *gone, ValueError(), ConnectionError())]
    return out


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    print("RESULT", json.dumps(main(Path(sys.argv[1]))))
