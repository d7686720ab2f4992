"""A policy by its name: what a run's best policy is, and what is said of runs and policies that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayrec.config import Config, PlacementConfig
from rayrec.deciding import to_dict
from rayrec.recommend import batch, places
from rayrec.serving import deploy
from rayrec.serving.settings import ServeConfig


def make_run(folder: Path, *policies: str) -> None:
    """The files of a run that its policies are found by."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": to_dict(Config())}))
    for phase in policies:
        made = folder / phase / "policy"
        made.mkdir(parents=True)
        (made / "model.safetensors").touch()
    record = {"kind": "evaluation", "split": "test", "decode": "greedy", "N": 9, "HR@5": 0.5}
    rows = [record | {"iteration": n, "policy": phase, "phase": phase} for n, phase in enumerate(policies)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "demo", "00/sft", "01/prefer")
    make_run(tmp_path / "runs" / "other", "00/sft")
    make_run(tmp_path / "runs" / "begun")
    return tmp_path / "runs"


def test_a_run_stands_for_a_policy_of_its_own(runs: Path) -> None:
    for name in ("runs/demo", str(runs / "demo")):
        found = places.find(name)
        assert (
            found.name == "demo/01/prefer" and found.run and Path(found.model).parts[-3:] == ("01", "prefer", "policy")
        )
    assert places.find("runs/demo/00/sft").name == "demo/00/sft"


def refused(policy: str) -> str:
    with pytest.raises(ValueError) as error:
        places.find(policy)
    return str(error.value)


def test_a_run_that_is_not_there_is_refused_with_those_that_are(runs: Path) -> None:
    assert refused("runs/dmeo") == "runs/dmeo: there is no such run. In runs are demo, other, begun. Name one of them."
    assert refused(f"{runs}/othr/01/prefer").startswith(
        f"{runs}/othr/01/prefer: there is no such run. In {runs} are other,"
    )
    assert refused("demo") == "demo: no such folder here, but a run in runs. Take runs/demo."
    for nowhere in ("./nowhere", "a/b/c", "~/no such folder of mine"):
        assert refused(nowhere).startswith(f"{nowhere}: there is no such run or folder. Name one that exists")


def test_what_may_be_a_hub_id_is_left_to_the_hub(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("gpt2", "owner/name"):
        assert refused(name).startswith(f"model {name}: no such folder here, HF_HUB_OFFLINE is set")


def test_a_policy_without_weights_is_refused_with_those_that_have_some(runs: Path) -> None:
    told = refused("runs/demo/02/prefer")
    assert told.startswith("runs/demo/02/prefer/policy: no weights are there")
    assert told.endswith("Name one that is kept: runs/demo/00/sft, runs/demo/01/prefer.")
    told = refused("runs/begun")
    assert told == (
        "runs/begun: no policy of this run was evaluated yet. Finish the run, or name another of runs: demo, other."
    )


def test_other_users_in_the_same_file_are_another_job(runs: Path) -> None:
    users = runs / "users.txt"
    users.write_text("ann\n")
    config = batch.RecommendConfig(policy="runs/demo", users=str(users))
    begun = batch._claim(config, runs / "parts")
    assert batch._claim(config, runs / "parts") == begun
    users.write_text("bob\n")
    with pytest.raises(ValueError, match="found parts of other settings, policy or users"):
        batch._claim(config, runs / "parts")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--train-workers", 2), ("--cluster", "8x8xH100"), ("--sequential", True), ("--wait-for-resources", 60.0)],
)
def test_placement_that_makes_no_lists_is_refused(tmp_path: Path, flag: str, value: Any) -> None:
    placement = PlacementConfig(**{flag[2:].replace("-", "_"): value})
    told = f"^{flag}: lists are made without it. Leave it out.$"
    with pytest.raises(ValueError, match=told):
        batch.run(batch.RecommendConfig("runs/demo", out=str(tmp_path / "lists.parquet"), placement=placement))
    with pytest.raises(ValueError, match=told):
        deploy.run(ServeConfig("runs/demo", placement=placement))


def test_generators_of_lists_share_their_cards_with_no_training_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert batch.has_gpu(PlacementConfig(generators=2, address="local"))
    with pytest.raises(ValueError, match=r"takes 3 GPUs, this machine has 2\. Lower --generators, or join a cluster"):
        batch.has_gpu(PlacementConfig(generators=3, address="local"))
