"""A loss, a sampler, a metric, a source and an engine from outside are a row in a dict each, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from rayrec.runs.manifest import read_json

ROOT = Path(__file__).parents[1]
#: A run of seconds: one iteration of a very small model.
SMALL = {
    "iterations": 1,
    "history": 4,
    "test-rows": 30,
    "valid-rows": 10,
    "pretrain-steps": 5,
    "tiny-layers": 1,
    "tiny-hidden": 32,
    "tiny-vocab": 300,
    "first-rows": 32,
    "rows-per-iteration": 16,
    "batch": 8,
    "prefer-batch": 8,
    "micro-batch": 8,
    "pretrain-batch": 8,
    "decode": "greedy",
    "device": "cpu",
    "threads": 1,
}
MINE = dict.fromkeys(["source", "objective", "negatives", "engine"], "mine")
HELP = """
import runpy, sys
sys.argv = ["job", "--help-all"]
try:
    runpy.run_path("tests/extending_job.py", run_name="__main__")
except SystemExit:
    print(sorted({"torch", "ray", "vllm", "transformers"} & sys.modules.keys()))
"""
COMPARE = """
import sys
from pathlib import Path
from rayrec.compare import page
from rayrec.compare.cells import read_cell
from rayrec.compare.compare import compare
from tests import extending_job

rows = compare([read_cell(Path(path), Path(path).name, 0, ("greedy",)) for path in sys.argv[1:]], "near", 5)
print(rows[1]["MineMRR@5"]["value"], page.page(rows, [], 5, "near", "two runs", "toy"))
"""


def python(*args: str) -> str:
    """The output of a process that finds the jobs and the tests."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'jobs'}"}
    done = subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_help_lists_every_row_and_imports_nothing_heavy() -> None:
    shown = python("-c", HELP)
    assert shown.splitlines()[-1] == "[]"
    text = " ".join(shown.replace("│", " ").split())
    for flag in ("source", "objective", "engine"):
        choices = text.partition(f"--{flag} {{")[2].partition("}")[0]
        assert "mine" in choices.replace(" ", "").split(",")
    assert "mine: the first titles of the catalogue" in text and "--room" in text


def test_each_row_is_used_and_seen(tmp_path: Path) -> None:
    draw, runs = np.random.default_rng(0), tmp_path / "runs"
    plays = [
        f"user{user}|Title {draw.integers(30)}|{1_000_000 + 97 * (user + 40 * place)}"
        for user in range(40)
        for place in range(10)
    ]
    (tmp_path / "plays.mine").write_text("\n".join(plays))
    flags = SMALL | MINE | {"data": tmp_path, "runs": runs, "name": "near", "room": 5.0}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    assert "MineMRR" in python("tests/extending_job.py", "--preset", "toy", *words)
    assert "MineMRR" in (runs / "near" / "report.html").read_text()
    config = read_json(runs / "near" / "config.json")["config"]
    used = (config["data"]["source"], config["loss"]["objective"], config["loss"]["room"])
    assert used == ("mine", "mine", 5.0)
    assert (config["train"]["negatives"], config["evaluate"]["engine"]) == (["mine"], "mine")
    shutil.copytree(runs / "near", runs / "far")  # the other cell of the comparison
    value, page = python("-c", COMPARE, *(str(runs / name) for name in ("near", "far"))).split(" ", 1)
    assert 0 <= float(value) <= 1 and "MineMRR" in page
