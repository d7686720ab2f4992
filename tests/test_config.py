"""The command line, what its settings decide, and the floors of the house."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayrec.config import Config
from rayrec.data import load
from rayrec.deciding import EXTENDING, NOT_DECIDING, changed, result_hash, to_dict
from rayrec.driver import checks, plan
from rayrec.methods import METHODS, PRESETS, parse
from rayrec.objectives import OBJECTIVES, SFT_LOSSES

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "rayrec").rglob("*.py"))

#: A flag that goes, comes or changes its name breaks somebody's script: change this list on purpose.
FLAGS = """
--source --data --history --min-history --k-core --split --targets --protocol --ask --ratings --no-ratings --bad-rows
--duplicates --liked-from --columns --date-order --since --until
--long-prompts
--test-rows --valid-rows --seed
--model --template --item-vectors --no-item-vectors --lora-rank --lora-alpha --lora-dropout --max-length
--max-new-tokens --tiny-hidden --tiny-layers
--tiny-vocab --pretrain-steps --pretrain-batch --pretrain-lr
--iterations --first-rows --first-epochs --first-lr --first-warmup --first-schedule
--rows-per-iteration --target --min-rating --reweight
--negatives --num-negatives --score-negatives --no-score-negatives --allow-random-negatives
--no-allow-random-negatives
--equal-target --ground --no-ground --sft --no-sft --prefer --no-prefer --lr --batch --prefer-batch --micro-batch
--pass-memory --attention --activation-checkpointing --no-activation-checkpointing
--prefer-epochs --warmup --schedule --weight-decay --clip --dtype --zero-stage
--sft-loss --sft-temperature --sft-eta --sft-beams --sft-lam --sft-xi --sft-theta
--objective --beta --gamma --lam --margin --tau --average --alpha --lambda-d --lambda-u --shift --inner --anchor
--clip-low --clip-high
--smoothing
--decode --normalise --d3-alpha --beam-width --top-k --embedder --embedder-path --popularity-gamma
--engine --every --endpoint --served --part
--train-workers --max-train-workers --generators --tensor-parallel --device --placement --sequential --no-sequential
--threads --address --cluster
--checkpoint-steps --checkpoint-seconds
--train-resource --generate-resource --wait-for-resources --max-deaths --wait-seconds
--runs --name --on-existing --keep --share --no-share --track --dry-run --no-dry-run
--help --help-all --preset --method --config
"""


def settings() -> Iterator[tuple[str, dataclasses.Field]]:
    """(group, setting) of the whole configuration."""
    for group in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), group.name)):
            yield group.name, field


def test_help_takes_less_than_two_seconds_and_lists_the_flags() -> None:
    seconds, done = 9.0, None
    for _ in range(4):  # on a machine whose cores others use, a try takes up to twice as long
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "jobs/sprec.py", "--help-all"],
            cwd=ROOT,
            env=os.environ | {"COLUMNS": "200"},
            capture_output=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: what a quiet machine would take on the wall.
        seconds = min(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds < 2:
            break
    assert done is not None and seconds < 2
    assert done.returncode == 0
    # A flag stands at the start of its row, or after the comma of the flag that it switches off; then come two spaces.
    rows = [line.strip("│ ") for line in done.stdout.decode().splitlines()]
    heads = [row.split("  ")[0] for row in rows if row.startswith("-")]
    shown = {flag for head in heads for flag in re.findall(r"(?<![\w`])--[a-z][a-z0-9-]*", head)}
    assert shown | {"--help", "--help-all"} == set(FLAGS.split())


def test_presets_parse_and_hold_together() -> None:
    for name, config in PRESETS.items():
        assert parse("", ["--preset", name]) == config
        checks.resolve(config)
        assert parse("", ["--preset", name, "--lr", "0.7"]).train == dataclasses.replace(config.train, lr=0.7)
    assert parse("", []) == Config()


def test_methods_have_the_published_settings_and_flags_override_them() -> None:
    for name in METHODS:
        more = ["--endpoint", "http://x/v1", "--served", "m"] if name == "ChatRec" else []
        config = checks.resolve(parse("", ["--method", name, "--embedder", "sentence", "--embedder-path", "x", *more]))
        train = config.train
        if train.iterations == 1:  # offline methods tune once, on the rows of all iterations
            assert (train.rows_per_iteration, train.sft) == (3 * 2048, False)
        elif (batches := METHODS[name].get("rollout", {}).get("batches")) is not None:  # the same rows, in roll-outs
            assert (train.iterations, train.rows_per_iteration) == (3 * 2048 // (32 * batches), 32 * batches)
        else:
            assert (train.iterations, train.rows_per_iteration) in ((0, 2048), (3, 2048))
    for method, wanted in (("LLaRA", (8, 32, 5e-4, 5, 128)), ("TALLRec", (8, 16, 1e-4, 1, 128))):
        tuned = parse("", ["--method", method, "--model", "some/model"])
        model, train = tuned.model, tuned.train
        assert (model.lora_rank, model.lora_alpha, train.first_lr, train.first_epochs, train.batch) == wanted
        tiny = parse("", ["--method", method])
        assert (tiny.model.lora_rank, tiny.train.batch) == (None, 64)
    for method, wanted in (
        ("MSL", (8, 16, 1e-4, 10, 128)),
        ("BEAR", (8, 16, 1e-4, 10, 128)),
        ("Flower", (0, 3e-4, 7, 256)),
    ):
        tuned = parse("", ["--method", method, "--model", "some/model"])
        model, train = tuned.model, tuned.train
        adapters = (model.lora_rank, model.lora_alpha) if model.lora_rank else (0,)
        assert (*adapters, train.first_lr, train.first_epochs, train.batch) == wanted
        assert (tuned.evaluate.decode, tuned.evaluate.normalise) == (("beams",), "catalogue")
        assert tuned.supervised.sft_loss == method.lower()
    # S-DPO B.3 and RecPO D.3: the preference step alone, so that the first SFT is that of the other methods.
    names = ("lr", "prefer_batch", "prefer_epochs", "schedule", "warmup")
    first = ("first_lr", "first_epochs", "first_schedule", "first_warmup", "batch")
    plain = (2e-5, 32, 1, "linear", None)
    published = dict.fromkeys(("S-DPO", "RecPO", "DynamicPO"), (1e-5, 128, 3, "cosine", 0.05)) | {"DPO": plain}
    for method, wanted in published.items():
        train = parse("", ["--method", method, "--model", "some/model"]).train
        assert tuple(getattr(train, name) for name in names) == wanted
        assert tuple(getattr(train, name) for name in first) == (3e-4, 1, "linear", None, 64)
        train = parse("", ["--method", method]).train
        assert tuple(getattr(train, name) for name in names) == plain
    train = parse("", ["--method", "LLaRA", "--model", "some/model"]).train
    assert (train.first_schedule, train.first_warmup, train.schedule) == ("cosine", 0.05, "linear")
    margins = {name: METHODS[name]["loss"]["margin"] for name in METHODS if name.startswith("RecPO")}
    assert margins == {"RecPO": "ratio", "RecPO-log-ratio": "log_ratio", "RecPO-log-diff": "log_diff"}
    for method, wanted in (("BIGRec", (0, 64)), ("S-DPO", (1, 4 * 64)), ("SPRec", (4, 64))):
        train = parse("", ["--method", method, "--iterations=4", "--rows-per-iteration", "64"]).train
        assert (train.iterations, train.rows_per_iteration) == wanted
    config = parse("", ["--preset", "toy", "--method", "S-DPO", "--num-negatives", "5"])
    assert (config.train.num_negatives, config.train.rows_per_iteration) == (5, 2 * 128)


def test_a_method_without_iterations_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert parse("", ["--method", "BIGRec", "--iterations", "5"], prog="rayrec sprec").train.iterations == 0
    assert caplog.messages == ["--iterations 5: BIGRec has none, and its run is the same with any."]
    caplog.clear()
    for args in (["--method", "BIGRec"], ["--method", "DPO", "--iterations", "5"], ["--iterations", "5"]):
        parse("", args, prog="rayrec sprec")
    parse("", ["--method", "BIGRec", "--iterations", "5"])  # a cell of a comparison, whose iterations are of others
    assert not caplog.messages


def test_what_preset_method_and_command_set_is_listed() -> None:
    args = ["--method", "S-DPO", "--model", "some/model", "--top-k", "5"]
    found = {row["setting"]: (row["here"], row["default"]) for row in changed(checks.resolve(parse("", args)))}
    wanted = {"--objective": ("sdpo", "dpo"), "--beta": ("1.0", "–"), "--num-negatives": ("3", "1")}
    wanted |= {"--lr": ("1e-05", "2e-05"), "--warmup": ("0.05", "–"), "--schedule": ("cosine", "linear")}
    wanted |= {"--top-k": ("5", "1 5 10"), "--sft": ("False", "True"), "--lora-rank": ("16", "–")}
    assert found.items() >= wanted.items() and not {"--first-lr", "--first-schedule"} & found.keys()
    assert changed(Config()) == []


def test_the_document_says_what_presets_and_methods_set() -> None:
    """The flags of docs/methods.md, `Published and set`, alone give the configuration of the method or preset."""
    text = (ROOT / "docs" / "methods.md").read_text()
    part = text[text.index("## Published and set") : text.index("## Objectives")]
    rows = re.findall(r"^\| `--(method|preset) ([\w-]+)` \| `(.*?)` \|", part, re.MULTILINE)
    assert len(rows) >= 9
    for kind, name, flags in rows:
        more = ["--model", "some/model"] if kind == "method" else []
        assert parse("", [*flags.split(), *more]) == parse("", [f"--{kind}", name, *more]), name


def test_negatives_are_the_protocols_own_unless_they_are_named() -> None:
    def negatives(*args: str) -> tuple[str, ...]:
        return checks.resolve(parse("", list(args))).train.negatives

    choosing = ("--protocol", "candidates")
    assert (negatives(), negatives(*choosing)) == (("self_play",), ("candidates",))
    assert negatives(*choosing, "--negatives", "random") == ("random",)
    for method in ("SPRec", "SPRec-noSFT", "SPIN"):
        assert negatives("--method", method, *choosing) == ("self_play",)
    left_out, named = (checks.resolve(parse("", args)) for args in ([], ["--negatives", "self_play"]))
    assert result_hash(left_out, {"data": "content"}) == result_hash(named, {"data": "content"})


def test_epochs_of_the_preference_step_are_planned() -> None:
    config = checks.resolve(parse("", ["--iterations", "1", "--rows-per-iteration", "50", "--prefer-epochs", "3"]))
    found = {phase.kind: phase for phase in plan.phases(config, load(config.data)) if phase.name.startswith("01/")}
    assert (found["prefer"].rows, found["prefer"].epochs, found["prefer"].batches) == (50, 3, 5)  # 150 of 32
    assert (found["sft"].epochs, found["negatives"].rows) == (1, 50)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--method SPREC", r"--method SPREC: no such method\. Did you mean SPRec\? Take one of zero-shot, "),
        ("--preset demmo", r"--preset demmo: no such preset\. Did you mean demo\? Take one of small, toy, "),
        ("--method x", r"--method x: no such method\. Take one of "),
        ("--method DPO --iterations 0", r"--iterations 0: --method DPO tunes once, .* Take --iterations 1"),
        ("--method DPO --iterations -1", r"--iterations is -1, wanted a finite number"),
        ("--method GSPO --prefer-batch 0", r"--prefer-batch is 0, wanted a finite number above 0"),
    ],
)
def test_a_method_or_preset_that_cannot_be_had_is_answered_in_one_line(args: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse("", args.split())


def test_evaluations_are_every_so_many_iterations_and_at_the_end() -> None:
    def evaluated(*args: str) -> list[str]:
        config = checks.resolve(parse("", ["--rows-per-iteration", "64", *args]))
        return [phase.name for phase in plan.phases(config, load(config.data)) if phase.kind == "evaluate"]

    assert evaluated("--iterations", "2") == ["00/evaluate", "01/evaluate", "02/evaluate"]
    assert evaluated("--iterations", "5", "--every", "2") == [
        "00/evaluate",
        "02/evaluate",
        "04/evaluate",
        "05/evaluate",
    ]
    rollouts = evaluated("--method", "ReRe", "--iterations", "2", "--rows-per-iteration", "96", "--prefer-batch", "32")
    assert rollouts == ["00/evaluate", "03/evaluate", "06/evaluate"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--beta 0", "--objective dpo: Found beta = 0"),
        ("--objective sdpo --beta -1", "--objective sdpo: Found beta = -1"),
        ("--tau 1", "--objective dpo has no --tau; it has --beta"),
        ("--protocol candidates --num-negatives 20", "--negatives candidates has 19 wrong candidates"),
        ("--anchor -1", "--anchor is -1"),
        ("--sft-beams 5", "--sft-loss sft has no --sft-beams"),
        ("--normalise catalogue", "Add --decode beams"),
        ("--sft-loss msl --method TALLRec", "--ask liking is answered by Yes or No"),
        ("--normalise catalogue --method TALLRec", "take no --ask liking"),
        ("--objective kto --smoothing sasrec", "--objective kto cannot smooth labels"),
        ("--objective rosepo --smoothing none", "--objective rosepo reads smoothed labels"),
        ("--negatives semantic", "--negatives semantic compares titles by a sentence embedder"),
        ("--negatives candidates --num-negatives 20", "19 wrong candidates"),
        ("--negatives self_play:0.5 random:0.4", "sum"),
        ("--num-negatives 0", "--num-negatives is 0"),
        ("--num-negatives 3", "--negatives self_play has 1 answer"),
        ("--num-negatives 2 --negatives self_play:0.5 random:0.5", "Take --negatives self_play_beam --objective sdpo"),
        ("--min-rating 0", "--min-rating is 0"),
    ],
)
def test_settings_of_losses_and_negatives_are_checked(args: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        checks.resolve(parse("", args.split()))


@pytest.mark.parametrize(
    "args",
    [
        "--negatives self_play_beam --objective sdpo",
        "--negatives self_play_sample",
        "--negatives self_play_beam:0.5 random:0.5",
        "--negatives self_play --iterations 0",
    ],
)
def test_several_answers_of_the_policy_are_taken_where_there_are_several(args: str) -> None:
    assert checks.resolve(parse("", ["--num-negatives", "3", *args.split()])).train.num_negatives == 3


def test_a_loss_is_resolved_with_its_own_defaults() -> None:
    def loss(*args: str) -> dict[str, Any]:
        given = dataclasses.asdict(checks.resolve(parse("", list(args))).loss)
        return {name: value for name, value in given.items() if value is not None}

    plain = {"anchor": 0.0, "smoothing": "none"}
    assert loss() == {"objective": "dpo", "beta": 0.1} | plain
    assert loss("--objective", "rosepo") == {"objective": "rosepo", "beta": 0.1} | plain | {"smoothing": "sasrec"}
    recpo = {"objective": "recpo", "beta": 1.0, "lam": 2.0, "margin": "log_ratio"}
    assert loss("--objective", "recpo", "--margin", "log_ratio") == recpo | plain
    assert loss("--objective", "ipo") == {"objective": "ipo", "tau": 0.1, "average": "sum"} | plain
    dynamic = {"objective": "dynamicpo", "beta": 1.0, "shift": 6.0, "inner": "dmpo"}
    assert loss("--objective", "dynamicpo", "--anchor", "0.5") == dynamic | plain | {"anchor": 0.5}


@pytest.mark.parametrize("file", ["Makefile", "README.md", "jobs/sprec.py", ".ci/run"])
def test_commands_that_are_written_down_name_presets(file: str) -> None:
    lines = [line for line in (ROOT / file).read_text().splitlines() if "jobs/compare.py" not in line]
    assert set(re.findall(r"--preset[ =](\w+)", "\n".join(lines))) <= PRESETS.keys()


def other(kind: Any, value: Any) -> Any:
    """Another value of a setting's type."""
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return next(option for option in options if option != value)
    if typing.get_origin(kind) is tuple:
        return (*value, other(options[0], value[0] if value else None))
    kind = options[0] if options else kind
    if typing.get_origin(kind) is typing.Literal:
        return other(kind, value)
    return not value if kind is bool else f"{value}x" if kind is str else kind(value or 0) + 1


@pytest.mark.parametrize(("group", "name"), [(group, field.name) for group, field in settings()])
def test_the_hash_is_of_what_decides_numbers(group: str, name: str) -> None:
    """All of data to evaluate, but for the paths of data and embedder, for which their content stands; nothing else."""
    config, part = Config(), getattr(Config(), group)
    kind = typing.get_type_hints(type(part))[name]
    changed = dataclasses.replace(part, **{name: other(kind, getattr(part, name))})
    assert changed != part
    decides = group in ("data", "model", "train", "supervised", "loss", "evaluate")
    decides = decides and f"{group}.{name}" not in NOT_DECIDING.keys() | EXTENDING
    again = dataclasses.replace(config, **{group: changed})
    assert (result_hash(again, {"data": "content"}) != result_hash(config, {"data": "content"})) == decides
    assert result_hash(config, {"data": "content"}) != result_hash(config, {"data": "other content"})


#: How code calls a group, and what its reader in data/ calls all of its settings.
CALLED = {
    "data": ("data", "config"),
    "model": ("model", "config"),
    "train": ("train",),
    "supervised": ("supervised",),
    "loss": ("loss",),
    "evaluate": ("evaluate", "settings"),
    "placement": ("placement",),
    "output": ("output",),
}


def test_every_setting_is_consumed() -> None:
    """Checking a setting in plan.py is not consuming it."""
    read: set[tuple[str, str]] = set()
    for path in FILES:
        if path.name in ("config.py", "methods.py", "plan.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                read |= {(group, node.attr) for group, names in CALLED.items() if owner in names}
    read |= {("loss", field.name) for kind in OBJECTIVES.values() for field in dataclasses.fields(kind)}
    read |= {("supervised", f"sft_{f.name}") for kind in SFT_LOSSES.values() for f in dataclasses.fields(kind)}
    assert [f"{group}.{field.name}" for group, field in settings() if (group, field.name) not in read] == []


@pytest.mark.parametrize("words", [["--train-workers", "2:8"], ["--train-workers=2:8"]])
def test_a_range_of_training_workers(words: list[str]) -> None:
    config = parse("", ["--preset", "toy", *words, "--batch", "16", "--prefer-batch", "32", "--pretrain-batch", "64"])
    assert (config.placement.train_workers, config.placement.max_train_workers) == (2, 8)
    assert config.worker_counts == (2, 4, 8)  # what divides every batch
    assert parse("", ["--train-workers", "2"]).worker_counts == (2,)
    assert parse("", ["--runs", "2:8"]).output.runs == "2:8"


def test_a_runs_configuration_gives_the_defaults(tmp_path: Path) -> None:
    config = parse("", ["--preset", "toy", "--top-k", "3", "--negatives", "random", "--name", "x", "--dry-run"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"config": to_dict(config)}))
    again = parse("", ["--config", str(file)])
    assert again == dataclasses.replace(config, output=dataclasses.replace(config.output, dry_run=False))
    assert parse("", ["--config", str(tmp_path), "--lr", "0.5", "--iterations", "9"]).train == dataclasses.replace(
        config.train, lr=0.5, iterations=9
    )
    assert parse("", ["--config", str(file), "--method", "SPRec-RN"]).train.negatives == ("random",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("no JSON", "Expecting value"),
        ("{}", "'config'"),
        ('{"config": {"data": {}}}', "found the groups"),
        ("extra", "--colour are settings of another revision"),
    ],
)
def test_another_file_is_no_configuration(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "config.json"
    if content == "extra":
        groups = to_dict(Config())
        content = json.dumps({"config": groups | {"data": groups["data"] | {"colour": "red"}}})
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=rf"^--config .*{re.escape(says)}.* Name the config.json of a run"):
        parse("", ["--config", str(file)])


def test_a_configuration_and_a_preset_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--config and --preset toy both set"):
        parse("", ["--config", str(tmp_path), "--preset", "toy"])


def test_where_d3_tunes_its_weight_the_list_lengths_decide() -> None:
    def hashed(*args: str) -> str:
        return result_hash(parse("", list(args)), {"data": "content"})

    assert hashed("--top-k", "5") == hashed("--top-k", "7", "--iterations", "9")
    assert hashed("--decode", "d3", "--top-k", "5") != hashed("--decode", "d3", "--top-k", "7")
    fixed = ("--decode", "d3", "--d3-alpha", "0.5")
    assert hashed(*fixed, "--top-k", "5") == hashed(*fixed, "--top-k", "7")
