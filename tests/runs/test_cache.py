"""Results that runs share have the same bytes; every setting is part of a key unless a list says why not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import pyarrow as pa
import pytest

from rayrec.config import BaselinesConfig, Config, TrainConfig
from rayrec.deciding import EXTENDING, NOT_DECIDING, result_hash
from rayrec.driver.checks import resolve
from rayrec.lanes import Planned, Policy, Shared
from rayrec.methods import parse
from rayrec.runs.cache import key_hash, make_once, share_phase
from rayrec.runs.manifest import CHECKPOINT, damage, seal
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from rayrec.training.board import Phase
from rayrec.training.keys import NOT_READ_FIRST, checkpoint_key, shared_key
from rayrec.training.lane import Pace, TrainLane


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
        metrics = share_phase(run, Path(phase.rows).parent, shared_key(phase, config, gpu), facts, make)
        assert metrics == {"records": [{"loss": 1.5}]}
        assert (Path(phase.out) / "model.safetensors").read_bytes() == b"tuned"
        assert not (Path(phase.out).parent / "DONE").exists()  # the phase is finished by its run
        return facts


def test_an_entry_is_read_by_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        entry = make_once(tmp_path, {"a": 1}, lambda folder: {"n": (folder / "x").write_text("y")})
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (entry, entry / "x")] == [0o750, 0o640]


def test_the_second_run_takes_what_the_first_made(tmp_path: Path) -> None:
    maker = Maker()
    assert maker(tmp_path, phase_of(tmp_path, "a"), Config()) == {}
    facts = maker(tmp_path, phase_of(tmp_path, "b"), Config())
    assert maker.calls == 1
    assert [str(path) for path in (tmp_path / ".shared").iterdir()] == [facts["taken_from"]]


def changed(config: Any, group: str, name: str) -> Any:
    """The configuration with another value of one setting."""
    owner = getattr(config, group)
    value, kind = getattr(owner, name), get_type_hints(type(owner))[name]
    others = [o for one in (kind, *get_args(kind)) for o in (one, *get_args(one)) if isinstance(o, str | bool)]
    if isinstance(value, bool):
        new: Any = not value
    elif isinstance(value, int | float):
        new = value + 1
    elif value is None and {int, float} & {*get_args(kind)}:
        new = 4
    elif isinstance(value, tuple):
        new = (*value, *value, "x")
    else:
        new = next((other for other in others if other != value), "another" if value is None else value + "x")
    return dataclasses.replace(config, **{group: dataclasses.replace(owner, **{name: new})})


def settings_of(config: Any) -> list[tuple[str, str]]:
    groups = [f.name for f in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, f.name))]
    return [(group, field.name) for group in groups for field in dataclasses.fields(getattr(config, group))]


def test_every_setting_is_in_the_keys_or_on_a_list_with_the_reason(tmp_path: Path) -> None:
    phase, config = phase_of(tmp_path, "a"), Config()
    unread = {name for names in NOT_READ_FIRST.values() for name in names}
    keys = {
        "run": lambda config: result_hash(config, {}),
        "checkpoint": lambda config: key_hash(checkpoint_key(phase, config)),
        "first training": lambda config: key_hash(shared_key(phase, config, False)),
    }
    for key, of in keys.items():
        for group, name in settings_of(config):
            other, setting = of(changed(config, group, name)), f"{group}.{name}"
            decides = not {group, setting} & {*NOT_DECIDING} and not (key == "first training" and setting in unread)
            decides = decides and not (key == "run" and setting in EXTENDING)
            if group == "placement" and key == "first training":
                decides = name in ("train_workers", "max_train_workers")
            assert (other != of(config)) == decides, f"{key}: {setting}"
    baselines = BaselinesConfig()
    for group, name in settings_of(baselines):
        other = result_hash(changed(baselines, group, name), {})
        assert (other != result_hash(baselines, {})) == (not {group, f"{group}.{name}"} & {*NOT_DECIDING}), name
    both = {f"{group}.{name}" for one in (config, baselines) for group, name in settings_of(one)}
    assert unread <= both and {*NOT_DECIDING} <= both | {"placement", "output", "json"}  # no list names what is gone


def test_a_new_setting_is_in_the_keys_before_anybody_thought_of_it(tmp_path: Path) -> None:
    phase = phase_of(tmp_path, "a")
    fields = [("optimizer", str, dataclasses.field(default="adamw"))]
    wider: Any = dataclasses.make_dataclass("Wider", fields, bases=(TrainConfig,), frozen=True)
    configs = [dataclasses.replace(Config(), train=wider(optimizer=name)) for name in ("adamw", "muon")]
    for key in (lambda c: shared_key(phase, c, False), lambda c: checkpoint_key(phase, c)):
        assert len({key_hash(key(config)) for config in configs}) == 2


def test_a_changed_source_is_another_key(tmp_path: Path) -> None:
    package = Path(__file__).parents[2] / "rayrec"
    shutil.copytree(package, tmp_path / "rayrec", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "rayrec" / "objectives" / "dpo.py"
    source.write_text(source.read_text() + "# another line\n")
    code = "from rayrec.runs.cache import key_hash; print(key_hash({}))"
    there = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True, env={"PATH": ""})
    assert there.strip() != key_hash({})


def test_what_a_gpu_made_is_for_gpus(tmp_path: Path) -> None:
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "a"), Config(), gpu=True)
    maker(tmp_path, phase_of(tmp_path, "b"), Config())
    assert maker.calls == 2


def test_what_was_resumed_is_not_shared(tmp_path: Path) -> None:
    """Another number of workers than the key says may have begun it."""
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "a"), Config(), resumed_at=2)
    maker(tmp_path, phase_of(tmp_path, "b"), Config())
    assert maker.calls == 2 and len([*(tmp_path / ".shared").iterdir()]) == 1


def test_methods_on_the_same_rows_share_their_first_training_and_no_other_rows(tmp_path: Path) -> None:
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "SPRec"), resolve(parse("", ["--method", "SPRec"])))
    for method in ("BIGRec", "D3", "S-DPO", "RosePO", "RecPO", "KTO", "RW"):
        assert maker(tmp_path, phase_of(tmp_path, method), resolve(parse("", ["--method", method]))), method
    assert maker.calls == 1
    maker(tmp_path, phase_of(tmp_path, "other", rows=b"other"), Config())
    assert maker.calls == 2


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    maker = Maker()
    maker(tmp_path, phase_of(tmp_path, "a"), Config())
    (entry,) = (tmp_path / ".shared").iterdir()
    (entry / "policy" / "model.safetensors").write_bytes(b"tunes")
    assert maker(tmp_path, phase_of(tmp_path, "b"), Config()) == {}
    assert maker(tmp_path, phase_of(tmp_path, "c"), Config()) == {"taken_from": str(entry)}
    assert json.loads((entry / "DONE").read_text())["pruned"] == [] and maker.calls == 2


def test_what_fails_or_is_made_twice_leaves_one_entry_or_none(tmp_path: Path) -> None:
    def fails(folder: Path) -> dict:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    def slow(folder: Path) -> dict:
        (folder / "file").write_text("made")
        make_once(tmp_path / "made", {"key": 1}, lambda other: {"size": (other / "file").write_text("made")})
        return {"size": 4}

    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "made", {"key": 1}, fails)
    assert not [*(tmp_path / "made").iterdir()]
    entry = make_once(tmp_path / "made", {"key": 1}, slow)
    assert [*(tmp_path / "made").iterdir()] == [entry] and not damage(entry)


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
        return {"steps": [{"step": 1, "loss": 1.5, "lr": 0.1}], "facts": {}, "proof": {}}


class Quiet:
    """No progress is shown."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def test_the_policy_of_a_worker_on_another_node_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

        def arrange(folder: Path, lane: TrainLane = lane, planned: Planned = planned) -> Any:
            return lane._arranged(planned, folder, table, 8, Pace(0.1, None, "linear"), 0.0)

        made = lane._training(planned, arrange, start).result()
        lane.close()
        assert (made.folder / "model.safetensors").read_bytes() == b"tuned"
        names = {entry["name"] for entry in json.loads((made.folder.parent / "DONE").read_text())["files"]}
        assert names == {"metrics.json", "policy/model.safetensors", "rows.parquet"} and not lost.parent.exists()
    (entry,) = (storage.root / ".shared").iterdir()
    assert group.calls == 1 and not damage(entry) and (entry / "policy" / "model.safetensors").exists()
