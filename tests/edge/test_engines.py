"""The generation engines answer with the policy's own log-probabilities, also after a hand-off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayrec.runs.manifest import read_json
from tests.edge.conftest import ROOT

# An engine sets its process up for good (threads, signal handlers), so it gets one of its own.
SCRIPT = """
import dataclasses, json, shutil, sys
from concurrent.futures import ThreadPoolExecutor
import torch
from rayrec.methods import parse
from rayrec.generation import ENGINES
from rayrec.generation.actor import Generator
from rayrec.generation.engine import Part, Setup
from rayrec.models.logprobs import PackedLM, pack
from rayrec.models import policy, proof
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
prompts = [template.prompt_ids(titles[i : i + 5]) for i in range(10)]
probe = proof.Probe(prompts[0], template.answer_ids(titles[9]))
setup = Setup(config, Storage(folder), f"{folder}/1", template, tuple(titles), False, ENGINES[engine], 1, probe=probe)
generator, proofs = Generator(setup), []
models = {version: policy.load_base(f"{folder}/{version}") for version in "12"}
logprobs = {version: proof.logprob(model, probe) for version, model in models.items()}
stated = {v: proof.folder_statement(f"{folder}/{v}", models[v], probe, logprobs[v]) for v in "12"}

def ask(of, mode, n, **more):
    part = Part("01/negatives", 0, of, f"{folder}/{of}", prompts, mode, n, seed=3, stated=stated[of])
    answers, facts = generator.answer(dataclasses.replace(part, **more))
    proofs.extend(facts["proofs"])
    return answers

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
before = ask("1", "greedy", 1)
used = []
for mode, n, threads in (("greedy", 1, 2), ("beams", 4, 3), ("greedy", 1, 0)):
    ask("1", mode, n, threads=threads)
    used.append(torch.get_num_threads())
out["used"] = used
out["threads"] = ask("1", "greedy", 1) == before
out["proofs"] = [one["compared"] for one in proofs]
out["seconds"] = sorted(one["end"] - one["start"] for one in proofs)[len(proofs) // 2]
out["reloaded"] = ask("1", "greedy", 1) != ask("2", "greedy", 1)
if engine == "vllm":  # as on a GPU: parts of several threads in one batch
    before, inner = ask("1", "greedy", 1), generator.engine.engine
    inner.gpu = True
    some = [prompts[:4], prompts[4:7], prompts[7:], [[5] * (config.model.max_length + 1)]]
    with ThreadPoolExecutor(4) as threads:
        parts = [Part("01/negatives", i, "1", f"{folder}/1", one, "greedy") for i, one in enumerate(some)]
        *made, refused = [threads.submit(inner.answer, part) for part in parts]
        found = [one for future in made for one in future.result()]
        out["refused"] = str(refused.exception())
    engine_, step = inner.stream._engine, inner.stream._engine.step
    def lose():  # the tokens of a step, for which all parts wait
        engine_.step = step
        step()
        raise MemoryError("no memory")
    engine_.step = lose
    with ThreadPoolExecutor(3) as threads:
        lost = [threads.submit(inner.answer, part) for part in parts[:3]]
    out["lost"] = [*{str(one.exception()) for one in lost if one.exception()}]
    after = [one for part in parts[:3] for one in inner.answer(part)]
    out["after"] = [[list(ids) for ids, _ in one] for one in after] == [[a.ids for a in one] for one in before]
    inner.gpu = False
    out["together"] = [[list(ids) for ids, _ in one] for one in found] == [[a.ids for a in one] for one in before]
    apart = [abs(logprob - a.logprob) for [(_, logprob)], [a] in zip(found, before)]
    out["apart"] = max(apart)
# A file that another policy's takes the place of, and a policy that was trained elsewhere.
shutil.copy(f"{folder}/1/model.safetensors", f"{folder}/2/model.safetensors")
try:
    ask("1", "greedy", 1)
    ask("2", "greedy", 1)
except ValueError as error:
    out["swapped"] = str(error)
proofs.clear()
ask("2", "greedy", 1, version="other", stated=None)
out["unknown"] = [(one["wanted_of"], one["compared"]) for one in proofs if one["version"] == "other"]
print("RESULT", json.dumps(out))
"""


@pytest.mark.parametrize("engine", ["vllm", "torch"])
def test_an_engine_answers_with_the_loaded_policys_log_probabilities(engine: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, engine, str(tmp_path)]
    # On CPUs vLLM's attention fails where two threads that make its steps have another number of threads.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
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
    assert out["used"] == [2, 3, 1]
    if engine == "vllm":  # the batch is another one, the answers are the same; a refusal is of its own thread
        assert out["together"] and out["apart"] < 1e-4, out
        assert "longer than the maximum model length" in out["refused"]
        assert out["lost"] == ["no memory"] and out["after"], out
    assert out["threads"], "the threads of another part changed the answers"
    # Every load is compared with the trainer's statement, of the engine and of the beams' model, at little cost.
    assert len(out["proofs"]) >= 10 and all(one == ["logprob", "whole"] for one in out["proofs"])
    assert out["seconds"] < 0.1
    name = {"vllm": "VllmEngine", "torch": "TorchEngine"}[engine]
    assert out["swapped"].startswith(f"2: the generator ({name}) does not hold the trainer's weights: log-probability")
    assert "; digest of the whole weights off by " in out["swapped"]
    # What this run has not trained is compared with transformers, unless the engine is that.
    assert out["unknown"] == [["transformers'", ["logprob", "whole"] if engine == "vllm" else []]]


@pytest.mark.slow
def test_a_broken_hand_off_stops_the_run_and_a_sound_one_is_in_the_trace(tmp_path: Path) -> None:
    flags = {"pretrain-steps": 2, "first-rows": 32, "rows-per-iteration": 32, "iterations": 1, "test-rows": 32}
    flags |= {"valid-rows": 32, "negatives": "random", "decode": "greedy", "method": "SPRec", "runs": tmp_path}
    # Shared first trainings would be taken from the other run.
    words = ["--no-share"]
    words += [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'jobs'}"}
    ended = {}
    for engine in ("stale", "torch"):
        command = [sys.executable, "tests/edge/handoff_job.py", "--preset", "toy", "--engine", engine, *words]
        done = subprocess.run(
            [*command, "--name", engine], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
        )
        ended[engine] = done.returncode, done.stderr
    assert ended["torch"][0] == 0, ended["torch"][1][-3000:]
    code, text = ended["stale"]
    line = next(line for line in text.splitlines() if line.startswith("error: "))
    assert code == 1 and "Traceback" not in text, text[-3000:]
    assert line.startswith("error: 01/prefer: the generator (Stale) does not hold the trainer's weights: "), line
    events = read_json(tmp_path / "torch" / "trace.json")["traceEvents"]
    trained = {one["name"]: one["args"]["proof"] for one in events if "proof" in one["args"]}
    proven = {one["args"]["version"]: one["args"] for one in events if one["cat"] == "proof"}
    assert trained.keys() >= {"00/sft", "01/sft", "01/prefer"} and proven.keys() == {"00/sft", "01/prefer"}
    for version, one in proven.items():
        assert one["wanted"] == trained[version] and one["compared"] == ["logprob", "whole"]
        assert one["found"]["logprob"] == pytest.approx(one["wanted"]["logprob"], abs=1e-4)
