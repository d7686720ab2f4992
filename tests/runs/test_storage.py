"""Runs in an object store: a real S3 server on loopback, and several copies that stand for nodes."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from rayrec.driver.checks import resolve
from rayrec.errors import Stopped
from rayrec.methods import parse
from rayrec.models.card import REMOVED
from rayrec.models.weights import weight_files
from rayrec.runs.manifest import CHECKPOINT, MANIFEST, damage, read_json, seal, write_json
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage, errno_of
from rayrec.runs.trace import LISTED_PARTS, Trace
from rayrec.training import checkpoint

Node = Callable[[str], None]


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty folder of runs."""
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "driver"))
    return f"file://{tmp_path}/store/runs" if request.param == "file" else f"s3://{bucket}/runs"


@pytest.fixture
def stand_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """From now on this process stands on the node of that name, with copies of its own."""
    return lambda node: monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / node))


class Unreliable(Storage):
    """A storage whose next ``failures`` writes fail, and whose next ``damages`` downloads of weights are damaged."""

    failures = damages = 0

    def __init__(self, runs: str):
        super().__init__(runs, pause=0.01)

    @cached_property
    def store(self) -> tuple[Any, str]:
        return Writes(super().store[0], self), super().store[1]

    def download_file(self, file: Path) -> None:
        super().download_file(file)
        if file.suffix == ".safetensors" and self.damages:
            self.damages -= 1
            file.write_bytes(b"w3ights")


class Writes:
    """A pyarrow filesystem whose connections break as often as its storage says."""

    def __init__(self, files: Any, storage: Unreliable):
        self.files, self.storage = files, storage

    def __getattr__(self, name: str) -> Any:
        if name == "open_output_stream" and self.storage.failures:
            self.storage.failures -= 1
            raise OSError("connection reset")
        return getattr(self.files, name)


ALWAYS = 10**9


def open_run(url: str, *args: str) -> Run:
    return unreliable_run(url, *args)[0]


def unreliable_run(url: str, *args: str) -> tuple[Run, Unreliable]:
    config = resolve(parse("", ["--runs", url, "--name", "r", *args]))
    storage = Unreliable(url)
    storage.download_run(storage.root / "r")
    return Run(storage, storage.root / "r", config, {"data": ""}), storage


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def finish(run: Run, phase: str = "01/sft", weights: bytes = b"weights") -> Path:
    folder = run.begin(phase)
    (folder / "policy").mkdir()
    (folder / "policy" / "model.safetensors").write_bytes(weights)
    run.finish(phase, {"records": [{"phase": phase}]})
    return folder


def test_what_is_finished_is_there_on_any_machine(url: str, stand_on: Node) -> None:
    first = open_run(url)
    wanted = files(finish(first))
    (first.begin("01/prefer") / "rows.parquet").write_text("half")  # begun, and never finished
    first.write_metrics(["01/sft", "01/prefer"])

    stand_on("second machine")
    second = open_run(url)
    assert second.root != first.root and second.done("01/sft") and not second.done("01/prefer")
    assert files(second.folder("01/sft")) == wanted
    assert json.loads((second.root / "metrics.jsonl").read_text()) == {"phase": "01/sft"}
    with pytest.raises(ValueError, match="made with other settings"):
        open_run(url, "--lr", "0.5")
    second.prune("01/sft")
    assert "--keep all" in (second.folder("01/sft") / "policy" / REMOVED).read_text()
    with pytest.raises(ValueError, match=r"the weights of this policy were removed; .* run again with --keep all"):
        weight_files(second.folder("01/sft") / "policy")

    stand_on("driver")  # the first machine learns what happened elsewhere
    assert not open_run(url).has_weights("01/sft") and not (first.root / "01/sft/policy/model.safetensors").exists()
    assert not (first.root / "01/prefer/rows.parquet").exists()
    overwritten = open_run(url, "--lr", "0.5", "--on-existing", "overwrite")
    stand_on("third machine")
    assert not open_run(url, "--lr", "0.5").done("01/sft") and not overwritten.done("01/sft")


def test_a_policy_goes_from_node_to_node(url: str, tmp_path: Path, stand_on: Node) -> None:
    run = open_run(url)
    out = run.begin("01/sft") / "policy"
    stand_on("worker")
    here = run.storage.here(out)
    assert here != out
    here.mkdir(parents=True)
    (here / "model.safetensors").write_bytes(b"trained")
    run.storage.upload(here)
    stand_on("driver")
    run.finish("01/sft", {"records": []})
    assert (out / "model.safetensors").read_bytes() == b"trained" and not damage(out.parent)
    stand_on("generator")
    found = run.storage.download(str(out))
    assert files(found) == {"model.safetensors": b"trained"} and not found.is_relative_to(tmp_path / "driver")
    # An older file of that name and size is no reason to leave it.
    (found / "model.safetensors").write_bytes(b"oldened")
    assert files(run.storage.download(out)) == {"model.safetensors": b"trained"}


def test_pruned_weights_take_no_room_on_other_nodes(url: str, stand_on: Node) -> None:
    run = open_run(url)
    phases = ("01/sft", "01/prefer", "02/sft")
    weights = [finish(run, phase) / "policy" / "model.safetensors" for phase in phases]
    stand_on("generator")
    here = [run.storage.download(file.parent) / file.name for file in weights[:2]]
    assert all(file.exists() for file in here)
    stand_on("driver")
    run.prune("01/sft")
    stand_on("generator")
    run.storage.download(weights[1].parent)  # is here: nothing new needs room
    assert here[0].exists()
    run.storage.download(weights[2].parent)
    assert not here[0].exists() and here[1].exists()


def test_a_checkpoint_is_the_stores_or_none(url: str, stand_on: Node) -> None:
    run = open_run(url)
    stand_on("worker")
    at = run.storage.here(run.folder("01/sft") / CHECKPOINT / "5")
    at.mkdir(parents=True)
    (at / "state").write_text("step 5")
    seal(at, CHECKPOINT, {"records": [5]})
    run.storage.upload(at)
    (at / "state").write_text("step 6")
    seal(at, CHECKPOINT, {"records": [6]})  # the node died before it was up
    assert read_json(run.storage.download(at) / "metrics.json") == {"records": [5]}
    stand_on("driver")
    open_run(url).begin("01/sft")
    stand_on("another worker")
    found = run.storage.download(run.folder("01/sft") / CHECKPOINT / "5")
    assert not damage(found) and (found / "state").read_text() == "step 5"
    run.storage.remove(found)
    assert not run.storage.download(run.folder("01/sft") / CHECKPOINT / "5").exists()


def save(run: Run, steps: int, key: str = "k") -> Path:
    """Save a checkpoint of the node that we stand on; its folder."""
    folder = run.storage.here(run.folder("01/sft") / CHECKPOINT)
    checkpoint.save(folder, key, [{"step": n} for n in range(steps)], None, 0, run.storage)
    return folder / str(steps)


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in the place of an engine's."""
    monkeypatch.setattr(checkpoint, "_state", lambda engine: iter([("w", torch.ones(3))]))


@pytest.mark.usefixtures("weights")
def test_a_checkpoint_counts_until_the_next_is_up(url: str, stand_on: Node) -> None:
    run, storage = unreliable_run(url)
    driver = run.folder("01/sft")
    stand_on("worker")
    assert save(run, 5).exists()
    storage.failures = ALWAYS
    with pytest.raises(Stopped):
        save(run, 10)
    storage.failures = 0

    def found(node: str, key: str = "k") -> int:
        stand_on(node)
        return len(checkpoint.records_of(run.storage.here(driver / CHECKPOINT), key, run.storage))

    assert found("another worker") == found("worker") == 5  # all ranks agree, whatever a node has
    assert not save(run, 10).parent.joinpath("5").exists()
    assert found("a third worker") == 10 and found("a third worker", "other rows") == 0
    assert [one.name for one in run.storage.finished_in(run.storage.here(driver / CHECKPOINT))] == ["10"]
    copies = run.storage.here(driver / CHECKPOINT)
    checkpoint.clear_copies(copies, run.storage)
    assert not copies.exists() and found("a third worker") == 10
    # The store's newest is damaged, or of other rows: an older one counts.
    save(run, 5)
    state = save(run, 10, "other rows") / "state-00000.safetensors"
    run.storage.clear(state.parent.parent, but="10")
    assert found("a third worker") == 0 and found("a third worker", "other rows") == 10
    state.write_bytes(b"w3ights")
    run.storage.upload(state)
    assert found("a fourth worker", "other rows") == 0
    stand_on("driver")
    run.finish("01/sft", {"records": []})
    assert found("a fifth worker", "other rows") == 0 and not list(driver.rglob("state-00000.safetensors"))


@pytest.mark.usefixtures("weights")
def test_a_checkpoint_on_disk_counts_until_the_next_is_sealed(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "runs"))
    folder = save(run, 5).parent
    with pytest.raises(pa.ArrowInvalid):  # after the weights are written
        checkpoint.save(folder, "k", [{"step": object()}] * 10, None, 0, run.storage)
    assert (folder / "10").exists()
    assert len(checkpoint.records_of(folder, "k", run.storage)) == 5
    assert len(checkpoint.records_of(save(run, 10).parent, "k", run.storage)) == 10
    run.begin("01/sft")
    checkpoint.clear_copies(folder, run.storage)  # there is no other
    assert [path.name for path in folder.iterdir()] == ["10"]
    run.finish("01/sft", {"records": []})
    assert not folder.exists()


def test_a_phase_that_is_pruned_stays_finished(url: str, stand_on: Node) -> None:
    run, storage = unreliable_run(url)
    finish(run)
    storage.failures = ALWAYS
    with pytest.raises(Stopped):
        run.prune("01/sft")
    stand_on("second machine")
    assert open_run(url).has_weights("01/sft")


def test_the_next_start_removes_what_a_pruning_has_left(url: str) -> None:
    folder = finish(open_run(url))
    manifest = read_json(folder / MANIFEST)
    weights = [one["name"] for one in manifest["files"] if one["name"].endswith(".safetensors")]
    write_json(folder / MANIFEST, manifest | {"pruned": weights})
    run = open_run(url)
    assert weights and run.done("01/sft") and all((folder / name).exists() for name in weights)
    run.prune("01/sft")
    assert not any((folder / name).exists() for name in weights)


def test_nothing_outside_is_pruned(url: str, tmp_path: Path, stand_on: Node) -> None:
    run = open_run(url)
    folders = [finish(run, phase) for phase in ("01/sft", "02/sft")]
    (ours := tmp_path / "ours").write_text("precious")
    for name in (str(ours), "../../../../ours"):
        stand_on("driver")
        write_json(folders[0] / MANIFEST, read_json(folders[0] / MANIFEST) | {"pruned": [name]})
        assert "prunes" in damage(folders[0])
        run.storage.upload(folders[0] / MANIFEST)
        stand_on("generator")
        copy = run.storage.here(folders[0] / "policy" / "model.safetensors")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"weights")
        (run.storage.download(folders[1]) / "metrics.json").unlink()
        run.storage.download(folders[1])
        assert ours.read_text() == "precious"


def test_half_a_file_of_a_dead_worker_is_not_sealed(url: str, stand_on: Node) -> None:
    run = open_run(url)
    folder = run.begin("01/sft")
    (folder / "predictions.parquet").write_text("the driver's own")
    (folder / "policy").mkdir()
    (folder / "policy" / "model.safetensors").write_bytes(b"trai")
    stand_on("worker")
    here = run.storage.here(folder) / "policy"
    here.mkdir(parents=True)
    (here / "model.safetensors").write_bytes(b"trained")
    run.storage.upload(here)
    stand_on("driver")
    run.finish("01/sft", {"records": []})
    stand_on("second machine")
    second = open_run(url)
    assert second.done("01/sft")
    found = files(second.folder("01/sft"))
    assert found["policy/model.safetensors"] == b"trained" and found["predictions.parquet"] == b"the driver's own"


def test_downloads_are_checked(url: str, stand_on: Node) -> None:
    run, storage = unreliable_run(url)
    policy = finish(run) / "policy"
    stand_on("generator")
    storage.damages = 1
    assert files(storage.download(policy)) == {"model.safetensors": b"weights"} and not storage.damages
    storage.damages = ALWAYS
    stand_on("another generator")
    with pytest.raises(Stopped, match=r"policy/model.safetensors: missing in .*, or damaged there"):
        run.storage.download(policy)
    assert not run.storage.here(policy / "model.safetensors").exists()


def test_curves_go_on_with_the_run(url: str, stand_on: Node) -> None:
    run = open_run(url)
    events = run.root / "tensorboard" / "events.out.tfevents.1.host"
    for text in ("first", "first, second"):
        events.parent.mkdir(exist_ok=True)
        events.write_text(text)
        run.write_metrics([])
    assert events.read_text() == "first, second" and open_run(url) and events.exists()
    stand_on("second machine")
    assert (open_run(url).root / "tensorboard" / events.name).read_text() == "first, second"


@pytest.mark.parametrize("place", ["url", "folder"])
@pytest.mark.parametrize("deletion", [0, 1, 2])
def test_overwriting_can_be_cut_short_anywhere(
    url: str, place: str, deletion: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = url if place == "url" else str(tmp_path / "runs")
    run = open_run(where)
    for phase in ("01/sft", "02/sft"):
        finish(run, phase)
    again = ("--lr", "0.5", "--on-existing", "overwrite")
    rmtree, left = shutil.rmtree, [deletion]

    def dies(path: Path, **how: Any) -> None:
        if left[0]:
            left[0] -= 1
            return rmtree(path, **how)
        (Path(path) / "config.json").unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "rmtree", dies)
        open_run(where, *again)
    found = open_run(where, *again)
    assert not found.done("01/sft") and not found.done("02/sft")


def test_a_run_that_was_removed_from_the_store_is_begun_anew(url: str) -> None:
    run = open_run(url)
    finish(run)
    write_json(run.root / ".processes.json", {})
    run.storage.remove(run.root)
    assert not open_run(url, "--lr", "0.5").done("01/sft")


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe{}"])
def test_a_broken_record_is_told_with_what_helps(tmp_path: Path, text: bytes) -> None:
    root = open_run(str(tmp_path)).root
    (root / "config.json").write_bytes(text)
    for how in ("resume", "overwrite"):
        with pytest.raises(ValueError, match=r"config.json: not readable as JSON .* remove the whole run") as error:
            open_run(str(tmp_path), "--on-existing", how)
        assert "same command" not in str(error.value)
    shutil.rmtree(root)
    assert open_run(str(tmp_path)).root == root


def test_a_trace_lists_so_many_parts_and_counts_the_others(tmp_path: Path) -> None:
    trace, count = Trace(tmp_path / "trace.json"), LISTED_PARTS + 7
    with trace.phase("01/negatives", "generators"):
        for part in range(count):
            trace.add("01/negatives/self_play", "part", "generators", "generator 0", part, part + 1, part=part)
    with trace.phase("01/sft", "trainers"):
        pass
    events = read_json(tmp_path / "trace.json")["traceEvents"]
    assert [e["args"]["part"] for e in events if e["cat"] == "part"] == list(range(LISTED_PARTS))
    phases = {e["name"]: e["args"] for e in events if e["cat"] == "phase"}
    assert phases == {"01/negatives": {"unlisted_parts": {"01/negatives/self_play": 7}}, "01/sft": {}}


@pytest.mark.parametrize("text", [b"{", b"3", b"\xff", b'{"traceEvents": [{"cat": "phase"}], "attempts": []}'])
def test_a_broken_trace_is_set_aside(tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    run = open_run(str(tmp_path))
    finish(run)
    (run.root / "trace.json").write_bytes(text)
    run = open_run(str(tmp_path))
    run.trace.attempt(left=[])
    assert "kept as trace.json.broken" in caplog.text
    caplog.clear()
    assert (run.root / "trace.json.broken").read_bytes() == text
    assert run.done("01/sft") and len(read_json(run.root / "trace.json")["attempts"]) == 1
    open_run(str(tmp_path)).trace.attempt(left=[])
    assert len(read_json(run.root / "trace.json")["attempts"]) == 2 and not caplog.text


def test_a_damaged_store_is_noticed(url: str, tmp_path: Path, stand_on: Node) -> None:
    run = open_run(url)
    folder = finish(run)
    finish(run, "02/sft")
    for phase, text in (("01/sft", b"w3ights"), ("02/sft", b"weights")):
        weights = run.folder(phase) / "policy" / "model.safetensors"
        weights.write_bytes(text)
        run.storage.upload(weights)
    run.storage.remove(run.folder("02/sft") / "policy" / "model.safetensors")
    stand_on("second machine")
    second = open_run(url)
    assert not second.done("01/sft") and not second.done("02/sft")

    stand_on("driver")
    manifest = read_json(folder / MANIFEST)
    manifest["files"][0]["name"] = "../../../../evil"
    write_json(folder / MANIFEST, manifest)
    run.storage.upload(folder / MANIFEST)
    stand_on("third machine")
    assert not open_run(url).done("01/sft") and not list(tmp_path.rglob("evil"))


def test_a_store_that_fails_is_tried_again_and_named(url: str, stand_on: Node) -> None:
    run, storage = unreliable_run(url)
    storage.failures = 2
    finish(run)
    assert storage.failures == 0
    storage.failures = ALWAYS
    with pytest.raises(Stopped, match=r"writing .* failed 5 times in 0 s: connection reset"):
        finish(run, "02/sft")
    stand_on("second machine")
    found = open_run(url)
    assert found.done("01/sft") and not found.done("02/sft")


def test_a_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"--runs s3://b/runs: reading r failed 1 times .* connect"):
        open_run("s3://b/runs")


def test_a_plain_folder_is_worked_on_in_place(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "runs"))
    assert run.root == tmp_path / "runs" / "r" and run.storage.name(run.root) == str(run.root)
    assert run.storage.download("org/model") == Path("org/model")
    folder = finish(run)
    assert run.storage.download(folder) == folder == run.storage.here(folder)


def test_the_number_of_a_trouble_is_known_whoever_writes(tmp_path: Path) -> None:
    """safetensors raises no OSError."""
    for write in (lambda path: path.write_bytes(b"x"), lambda path: save_file({"a": torch.zeros(9)}, path)):
        with pytest.raises((OSError, SafetensorError)) as caught:
            write(tmp_path / "missing" / "file")
        assert errno_of(caught.value) == errno.ENOENT
    assert errno_of(ValueError("no number")) is None
