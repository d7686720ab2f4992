"""What runs of one folder share is the same bytes, or made again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from rayrec.config import Config
from rayrec.driver.checks import resolve
from rayrec.lanes import Planned, Policy, Shared
from rayrec.methods import parse
from rayrec.runs.cache import take_or_make
from rayrec.runs.manifest import CHECKPOINT, damage, seal
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from rayrec.training.board import Phase
from rayrec.training.lane import TrainLane, of_training


def phase_of(root: Path, run: str, rows: bytes = b"rows") -> Phase:
    """A phase of a run whose folder holds its rows, as the training lane leaves it."""
    folder = root / run / "00" / "sft"
    folder.mkdir(parents=True)
    (folder / "rows.parquet").write_bytes(rows)
    start = root / run / "start"
    start.mkdir()
    (start / "model.safetensors").write_bytes(b"weights")
    return Phase("00/sft", "sft", str(folder / "rows.parquet"), str(start), str(folder / "policy"), 3, 8, 0.1, 1, 0, 1)


class Maker:
    """Writes a policy, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, root: Path, phase: Phase, config: Config, gpu: bool = False, **happened: int) -> dict:
        def make() -> dict:
            self.calls += 1
            facts.update(happened)
            Path(phase.out).mkdir()
            (Path(phase.out) / "model.safetensors").write_bytes(b"tuned")
            return {"records": [{"loss": 1.5}]}

        facts: dict = {}
        run = Path(phase.rows).parents[2]
        metrics = take_or_make(run, Path(phase.rows).parent, of_training(phase, config, gpu), facts, make)
        assert metrics == {"records": [{"loss": 1.5}]}
        assert (Path(phase.out) / "model.safetensors").read_bytes() == b"tuned"
        assert not (Path(phase.out).parent / "DONE").exists()  # the phase is finished by its run
        return facts


def test_the_second_run_takes_what_the_first_made(tmp_path: Path) -> None:
    maker = Maker()
    assert maker(tmp_path, phase_of(tmp_path, "a"), Config()) == {}
    facts = maker(tmp_path, phase_of(tmp_path, "b"), Config())
    assert maker.calls == 1
    assert [str(path) for path in (tmp_path / ".shared").iterdir()] == [facts["taken_from"]]


def changed(**groups: dict) -> Config:
    return dataclasses.replace(
        Config(), **{name: dataclasses.replace(getattr(Config(), name), **values) for name, values in groups.items()}
    )


@pytest.mark.parametrize(
    "config",
    [
        changed(data={"seed": 1}),
        changed(data={"ratings": True}),
        changed(data={"ask": "title_by_liking"}),
        changed(data={"protocol": "candidates"}),
        changed(train={"zero_stage": 2}),
        changed(train={"weight_decay": 0.5}),
        changed(model={"max_length": 64}),
        changed(placement={"train_workers": 2}),
    ],
)
def test_what_decides_the_bytes_is_not_shared(tmp_path: Path, config: Config) -> None:
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "a"), Config())
    maker(tmp_path, phase_of(tmp_path, "b"), config)
    assert maker.calls == 2


def test_what_a_gpu_made_is_for_gpus(tmp_path: Path) -> None:
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "a"), Config(), gpu=True)
    maker(tmp_path, phase_of(tmp_path, "b"), Config())
    assert maker.calls == 2


def test_what_was_resumed_is_not_shared(tmp_path: Path) -> None:
    """Maybe by another number of workers than its name says."""
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "a"), Config(), resumed_at=2)
    maker(tmp_path, phase_of(tmp_path, "b"), Config())
    assert maker.calls == 2 and len([*(tmp_path / ".shared").iterdir()]) == 1


def test_other_rows_are_not_shared_and_later_settings_do_not_matter(tmp_path: Path) -> None:
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "a"), Config())
    maker(tmp_path, phase_of(tmp_path, "b", rows=b"other"), Config())
    assert maker.calls == 2
    assert maker(tmp_path, phase_of(tmp_path, "c"), changed(train={"iterations": 9}, loss={"beta": 2.0}))
    assert maker.calls == 2


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "a"), Config())
    (entry,) = (tmp_path / ".shared").iterdir()
    (entry / "policy" / "model.safetensors").write_bytes(b"tunes")
    assert maker(tmp_path, phase_of(tmp_path, "b"), Config()) == {}
    assert maker(tmp_path, phase_of(tmp_path, "c"), Config()) == {"taken_from": str(entry)}
    assert json.loads((entry / "DONE").read_text())["pruned"] == [] and maker.calls == 2


class WorkerElsewhere:
    """A group of training workers on a node that shares nothing with the driver's."""

    def __init__(self, storage: Storage, copies: Path, patch: pytest.MonkeyPatch):
        self.storage, self.copies, self.patch, self.calls = storage, copies, patch, 0

    def run(self, phase: Phase, progress: Callable[..., None]) -> dict:
        self.calls += 1
        with self.patch.context() as there:
            there.setenv("RAYREC_COPIES", str(self.copies))
            out = self.storage.here(phase.out)
            out.mkdir(parents=True)
            (out / "model.safetensors").write_bytes(b"tuned")
            self.storage.upload(out)
        return {"steps": [{"step": 1, "loss": 1.5, "lr": 0.1}], "facts": {}}


class Quiet:
    """No progress is shown."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def test_what_a_worker_elsewhere_made_is_on_the_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/store/runs"
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "driver"))
    (tmp_path / "base").mkdir()
    storage, start = Storage(url), Policy("base", tmp_path / "base")
    group = WorkerElsewhere(storage, tmp_path / "worker", monkeypatch)
    table = pa.table({"step": [0]})
    for name in ("a", "b"):
        config = resolve(parse("", ["--runs", url, "--name", name, "--model", "tiny"]))
        run = Run(storage, storage.root / name, config, {"data": ""})
        lost = run.folder("00/sft") / CHECKPOINT / "5"  # of an earlier attempt at this very phase
        lost.mkdir(parents=True)
        seal(lost, CHECKPOINT, {"key": "", "records": []})
        storage.upload(lost)
        shared = Shared(config, cast("Any", None), run, None, 1, 1, lambda *args: None, Quiet())
        lane = TrainLane(shared, lambda: group, start)
        planned = Planned("00/sft", "sft", 1, 1, "steps", makes_policy=True)

        def make(folder: Path, facts: dict, lane: TrainLane = lane, planned: Planned = planned) -> dict:
            return lane._train(planned, folder, facts, start, table, 8, 0.1, 0.0)

        made = lane.phase(planned, make, lambda folder: Policy("00/sft", folder / "policy")).result()
        lane.close()
        assert (made.folder / "model.safetensors").read_bytes() == b"tuned"
        names = {entry["name"] for entry in json.loads((made.folder.parent / "DONE").read_text())["files"]}
        assert names == {"metrics.json", "policy/model.safetensors", "rows.parquet"} and not lost.parent.exists()
    (entry,) = (storage.root / ".shared").iterdir()
    assert group.calls == 1 and not damage(entry) and (entry / "policy" / "model.safetensors").exists()
