"""The other jobs refuse wrong arguments on one line, before anything is started or written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rayrec.commands import compare, evaluate
from rayrec.commands.baselines import check_read, read
from rayrec.config import BaselinesConfig
from rayrec.models.policy import add_lora, load_base, load_tokenizer, save, trainable_state
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny

ROOT = Path(__file__).parents[1]


def job(name: str, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, f"jobs/{name}.py", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--methods", "Nobody"], "--methods Nobody: no method is named 'Nobody'. Take some of zero-shot, "),
        (["--methods", "BIGRec", "SPRec", "--vary", "beta", "low"], "--vary beta low: wanted numbers"),
        (["--methods", "BIGRec", "SPRec", "--vary", "beta", "0"], "--objective dpo: Found beta = 0.0"),
        (["--methods", "BIGRec", "MoRec"], "MoRec reads item vectors from titles"),
        (["--methods", "SPRec"], "--against BIGRec is not compared"),
        (["--methods", "BIGRec", "--seeds", "1", "1"], "--seeds [1, 1] has one twice"),
        (["--methods", "BIGRec", "--k", "7"], "--k 7 is not among --top-k"),
        (["--methods", "BIGRec", "--lr", "-1"], "--lr is -1.0"),
        (["--methods", "BIGRec", "--at-once", "0"], "--at-once is 0"),
        (["--methods", "BIGRec", "--endpoint", "http://me:secret@host/v1"], "--endpoint holds a user name or a query"),
    ],
)
def test_wrong_arguments_are_refused_before_any_cell(args: list[str], message: str) -> None:
    given, rest = compare.options().parse_known_args(args)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        rest, rows = compare.settle(given, rest)
        compare.check(given, rows, rest)


def test_unknown_methods_and_flags_are_refused(tmp_path: Path) -> None:
    done = job("compare", "--methods", "BIGRec", "--learning-rate", "1", "--runs", str(tmp_path))
    assert done.returncode == 2 and "--learning-rate" in done.stderr
    done = job("compare", "--runs", str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("error: No method is named. Add --methods")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--policy is missing"),
        (["--policy"], "--policy is missing"),
        (["--policy", "tiny"], "--policy tiny is a model that a run makes. Name a Hugging Face folder"),
        (["--policy=x", "--first-rows", "100"], "--first-rows 100 would train the policy. Leave it out"),
        (["--policy", "x", "--method", "SPRec"], "--method is not for this job. The policy is evaluated as"),
        (["--policy", "x", "--model=y"], "--model is not for this job. The policy is the model. Leave it out."),
    ],
)
def test_no_policy_is_refused(args: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        evaluate.read(["--preset", "toy", *args])


def test_a_policy_that_is_not_there_is_refused_on_one_line(tmp_path: Path) -> None:
    done = job("evaluate", "--preset", "toy", "--runs", str(tmp_path), "--policy", "./nowhere")
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert done.stderr.startswith("error: ./nowhere: there is no such run or folder.") and done.stderr.count("\n") == 1


def test_of_adapters_the_merged_weights_are_evaluated(tmp_path: Path) -> None:
    base, policy = tmp_path / "base", tmp_path / "policy"
    make_tiny(["Film"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), base, 0)
    model = add_lora(load_base(base), 4, 8, 0.0)
    save(trainable_state(model), model, load_tokenizer(base), policy, {}, merged=True)
    line = ["--policy", str(policy), "--template", "compact", "--decode", "beams", "--engine", "torch", "--dry-run"]
    line += ["--preset", "toy", "--runs", str(tmp_path / "runs")]
    done = job("evaluate", *line)
    assert done.returncode == 0, done.stderr
    assert str(policy / "merged") in "".join(done.stdout.split())
    shutil.rmtree(policy / "merged")  # as after a run on GPUs
    done = job("evaluate", *line)
    assert done.returncode == 1 and "found an adapter" in done.stderr and "merge_and_unload()" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        "--generators 2",
        "--tensor-parallel 2",
        "--generate-resource big",
        "--placement shared",
        "--sequential",
        "--checkpoint-steps 5",
        "--checkpoint-seconds 0",
        "--keep all",
        "--no-share",
        "--track mlflow",
    ],
)
def test_baselines_refuse_what_they_do_not_read(args: str) -> None:
    with pytest.raises(ValueError, match=f"^{args.split()[0]}: these models are trained and ranked without it. Leave"):
        check_read(read(args.split()))
    check_read(BaselinesConfig())


def test_baselines_refuse_on_one_line(tmp_path: Path) -> None:
    done = job("baselines", "--track", "mlflow", "--runs", str(tmp_path))
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    assert done.stderr == "error: --track: these models are trained and ranked without it. Leave it out.\n"
