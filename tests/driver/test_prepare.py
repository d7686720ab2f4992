"""The preparation of a run, before the first actor starts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rayrec.driver import checks, plan
from rayrec.driver.names import model_name, run_folder
from rayrec.driver.prepare import prepare
from rayrec.lanes import Planned
from rayrec.methods import parse
from rayrec.models import card
from rayrec.models.shape import Shape
from rayrec.prompts import Template
from rayrec.runs import cache


def test_a_run_that_goes_on_does_not_tokenise_its_prompts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--preset", "toy", "--runs", str(tmp_path / "runs")]
    first = prepare(parse("", args), tmp_path / "a")
    assert not (tmp_path / "runs").exists()  # nothing is written before a run is opened
    shared = tmp_path / "runs" / cache.SHARED / "lengths"
    cache.make_once(shared, first.lengths_key, lambda _: first.tokens._asdict())
    counted: list[int] = []
    lengths = Template.lengths

    def count(self: Template, table: Any) -> Any:
        counted.append(len(table))
        return lengths(self, table)

    monkeypatch.setattr(Template, "lengths", count)
    again = prepare(parse("", args), tmp_path / "b")
    assert again.tokens == first.tokens and counted == []
    other = prepare(parse("", [*args, "--history", "8"]), tmp_path / "c")
    assert sum(counted) > len(other.tuning)  # other prompts have other lengths
    assert checks.Lengths(**cache.find(shared, first.lengths_key) or {}) == first.tokens
    alone = prepare(parse("", [*args, "--iterations", "0"]), tmp_path / "d")
    assert cache.find(shared, alone.lengths_key) is None  # without preferences a prompt has other room


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ("", "synthetic-tiny-dpo-self_play-seed0"),
        ("--method SPRec --seed 3", "synthetic-tiny-dpo-self_play-seed3"),
        ("--method SPRec --iterations 7 --top-k 20", "synthetic-tiny-dpo-self_play-seed0"),
        ("--method SPRec-noSFT --lr 1e-4", "synthetic-tiny-dpo-self_play-nosft-lr0.0001-seed0"),
        ("--method S-DPO", "synthetic-tiny-sdpo-candidates-nosft-K3-seed0"),
        ("--method SPRec-noDPO", "synthetic-tiny-sft-seed0"),
        ("--method BIGRec", "synthetic-tiny-bigrec-seed0"),
        ("--method RW --first-lr 1e-3", "synthetic-tiny-bigrec-reweighted-lr0.001-seed0"),
        ("--method zero-shot", "synthetic-tiny-as-is-seed0"),
        ("--method TALLRec", "synthetic-tiny-candidates-liking-bigrec-seed0"),
        ("--data /a/ml-100k/ --method BIGRec", "ml-100k-tiny-bigrec-seed0"),
        ("--data /a.csv --negatives self_play:0.5 random:0.5", "a.csv-tiny-dpo-self_play0.5+random0.5-seed0"),
        ("--name mine", "mine"),
    ],
)  # fmt: skip
def test_default_names_say_what_distinguishes_a_run(args: str, name: str) -> None:
    config = checks.resolve(parse("", args.split()))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source="synthetic"))
    assert run_folder(config).name == name


def test_policies_of_different_runs_have_different_names(tmp_path: Path) -> None:
    names = set()
    for run in ("one", "two"):
        for phase in ("01/prefer", "02/prefer"):
            folder = tmp_path / run / phase / "policy" / "merged"
            folder.mkdir(parents=True)
            asked = {name: None for name in card.ASKED}
            (folder / card.FILE).write_text(json.dumps(asked))
            names.add(model_name(str(folder), "abcdef0123"))
    assert names == {f"{run}-{t}-prefer-abcdef" for run in ("one", "two") for t in ("01", "02")}
    assert model_name("org/name", "abcdef") == "name"


def test_a_disk_without_room_for_the_policies_is_told_in_the_plan(tmp_path: Path) -> None:
    phases = [Planned(f"{t:02d}/sft", "sft", 8, 1, "steps", makes_policy=True) for t in range(10)]
    free = shutil.disk_usage(tmp_path).free
    assert plan.disk_here(phases, 1.0, "2", tmp_path / "runs") == {}
    assert plan.disk_here(phases, 1.5 * free, "2", tmp_path / "runs") == {}  # five of ten are there at once
    told = plan.disk_here(phases, 1.5 * free, "all", tmp_path / "runs")["disk"]
    assert f"and {tmp_path} has" in told and told.endswith("with --runs, or take --keep 1")
    assert plan.disk_here(phases, 1e3 * free, "1", tmp_path)["disk"].endswith("Name another folder with --runs")


def test_the_plan_counts_the_memory_of_negatives_that_are_searched() -> None:
    sizes = {"blocks": 10**8, "words": 10**7, "tied": True, "layers": 30, "hidden": 576, "queries": 576, "kv": 10**4}
    shape, tokens = Shape(**sizes, last_mlp=3 * 576 * 1536, adapters=0), checks.Lengths(180, 10, 24, 0)

    def held(words: str) -> float:
        config = checks.resolve(parse("", ["--model", "some/model", "--device", "cpu", *words.split()]))
        return plan.generator_bytes(config, tokens, shape, gpu=False)

    written = held("--decode greedy --negatives self_play")
    assert held("--decode greedy --negatives random") == written
    drawn = "--decode greedy --objective sdpo --negatives self_play_gumbel --num-negatives"
    assert written < held(f"{drawn} 3") < held(f"{drawn} 8") < held("--decode beams --beam-width 20 --top-k 5")
    assert held(f"{drawn} 3 --iterations 0") == written
    assert held("--decode greedy --score-negatives") > written
