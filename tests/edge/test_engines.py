"""The generation engines answer with the policy's own log-probabilities, also after a hand-off."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge.conftest import ROOT

# An engine sets its process up for good (threads, signal handlers), so it gets one of its own.
SCRIPT = """
import json, sys
import torch
from rayrec.methods import parse
from rayrec.generation import ENGINES
from rayrec.generation.actor import Generator
from rayrec.generation.engine import Part, Setup
from rayrec.models.logprobs import PackedLM, pack
from rayrec.models import policy
from rayrec.models.tiny import make_tiny
from rayrec.driver.checks import resolve
from rayrec.prompts import make_template
from rayrec.runs.storage import Storage

engine, folder = sys.argv[1], sys.argv[2]
config = resolve(parse("", ["--preset", "toy", "--max-new-tokens", "12"]))
titles = [f"{a} {b}" for a in ("Red", "Blue", "Old", "Lost") for b in ("River", "House", "Road", "Winter (1999)")]
for seed in (1, 2):
    make_tiny(titles, config.model, f"{folder}/{seed}", seed)
template = make_template("compact", policy.load_tokenizer(f"{folder}/1"))
generator = Generator(Setup(config, Storage(folder), f"{folder}/1", template, tuple(titles), False, ENGINES[engine], 1))
prompts = [template.prompt_ids(titles[i : i + 5]) for i in range(10)]

def ask(version, mode, n):
    part = Part("01/negatives", 0, version, f"{folder}/{version}", prompts, mode, n, seed=3)
    return generator.answer(part)[0]

def error(version, mode, n):
    answers, lm = ask(version, mode, n), PackedLM(policy.load_base(f"{folder}/{version}"))
    worst = 0.0
    for prompt, one in zip(prompts, answers):
        with torch.no_grad():
            exact = lm(pack([(prompt, [answer.ids for answer in one])]))[0]
        worst = max(worst, max(abs(answer.logprob - float(e)) for answer, e in zip(one, exact)))
    return worst, sum(len(one) for one in answers)

modes = {"beams": 16, "sample": 3, "greedy": 1, "free_beams": 4}
out = {mode: [error(v, mode, n) for v in ("1", "2", "1")] for mode, n in modes.items()}
first = {m: ask("2", m, n) for m, n in (("greedy", 1), ("sample", 3), ("free_beams", 4))}
ask("1", "greedy", 1)
again = {m: ask("2", m, n) for m, n in (("greedy", 1), ("sample", 3), ("free_beams", 4))}
out["repeats"] = first == again
out["reloaded"] = ask("1", "greedy", 1) != ask("2", "greedy", 1)
print("RESULT", json.dumps(out))
"""


@pytest.mark.parametrize("engine", ["vllm", "torch"])
def test_an_engine_answers_with_the_loaded_policys_log_probabilities(engine: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, engine, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
    # Beams hold all 16 titles of the catalogue; both policies, and the first again after the second.
    assert all(error < 1e-4 and count == 160 for error, count in out["beams"])
    # Answers that never ended too; a tied head must follow the hand-off.
    assert all(error < 1e-4 and count == 30 for error, count in out["sample"])
    assert all(error < 1e-4 and count == 10 for error, count in out["greedy"])
    # Beams that never ended are left out.
    assert all(error < 1e-4 and 10 <= count <= 40 for error, count in out["free_beams"])
    assert out["repeats"], "the same part gave other answers after other traffic"
    assert out["reloaded"], "two policies gave the same answers"
