"""Runs in an object store: a real S3 server on loopback, and several copies that stand for nodes."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from rayrec import storage
from rayrec.folders import CHECKPOINT, MANIFEST, damage, read_json, seal, write_json
from rayrec.methods import parse
from rayrec.plan import resolve
from rayrec.runs import Run, Stopped
from rayrec.storage import Storage


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    made = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    yield made
    made.stop()


@pytest.fixture(params=["s3", "file"])
def url(
    request: pytest.FixtureRequest, server: ThreadedMotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Address of an empty folder of runs."""
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "driver"))
    if request.param == "file":
        return f"file://{tmp_path}/store/runs"
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "me"}
    for name, value in (settings | {"AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-")
    urllib.request.urlopen(urllib.request.Request(f"{settings['AWS_ENDPOINT_URL']}/{bucket}", method="PUT")).close()
    return f"s3://{bucket}/runs"


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    """From now on this process stands on another node."""
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / node))


def open_run(url: str, *args: str) -> Run:
    config = resolve(parse("", ["--runs", url, "--name", "r", *args]))
    work = Storage(url)
    work.pull(work.root / "r")
    return Run(work, work.root / "r", config, "data")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def finish(run: Run, phase: str = "01/sft", weights: bytes = b"weights") -> Path:
    folder = run.begin(phase)
    (folder / "policy").mkdir()
    (folder / "policy" / "model.safetensors").write_bytes(weights)
    run.finish(phase, {"records": [{"phase": phase}]})
    return folder


def test_what_is_finished_is_there_on_any_machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_run(url)
    wanted = files(finish(first))
    (first.begin("01/prefer") / "rows.parquet").write_text("half")  # begun, and never finished
    first.write_metrics(["01/sft", "01/prefer"])

    elsewhere(tmp_path, monkeypatch, "second machine")
    second = open_run(url)
    assert second.root != first.root and second.done("01/sft") and not second.done("01/prefer")
    assert files(second.folder("01/sft")) == wanted
    assert json.loads((second.root / "metrics.jsonl").read_text()) == {"phase": "01/sft"}
    with pytest.raises(ValueError, match="made with other settings"):
        open_run(url, "--lr", "0.5")
    second.prune("01/sft")

    elsewhere(tmp_path, monkeypatch, "driver")  # the first machine learns what happened elsewhere
    assert not open_run(url).has_weights("01/sft") and not (first.root / "01/sft/policy/model.safetensors").exists()
    assert not (first.root / "01/prefer/rows.parquet").exists()
    overwritten = open_run(url, "--lr", "0.5", "--on-existing", "overwrite")
    elsewhere(tmp_path, monkeypatch, "third machine")
    assert not open_run(url, "--lr", "0.5").done("01/sft") and not overwritten.done("01/sft")


def test_a_policy_goes_from_node_to_node(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(url)
    out = run.begin("01/sft") / "policy"
    elsewhere(tmp_path, monkeypatch, "worker")
    here = run.storage.here(out)
    assert here != out
    here.mkdir(parents=True)
    (here / "model.safetensors").write_bytes(b"trained")
    run.storage.keep(here)
    elsewhere(tmp_path, monkeypatch, "driver")
    run.finish("01/sft", {"records": []})
    assert (out / "model.safetensors").read_bytes() == b"trained" and not damage(out.parent)
    elsewhere(tmp_path, monkeypatch, "generator")
    found = run.storage.fetch(str(out))
    assert files(found) == {"model.safetensors": b"trained"} and not found.is_relative_to(tmp_path / "driver")
    # An older file of that name and size is no reason to leave it.
    (found / "model.safetensors").write_bytes(b"oldened")
    assert files(run.storage.fetch(out)) == {"model.safetensors": b"trained"}


def test_pruned_weights_take_no_room_on_other_nodes(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(url)
    phases = ("01/sft", "01/prefer", "02/sft")
    weights = [finish(run, phase) / "policy" / "model.safetensors" for phase in phases]
    elsewhere(tmp_path, monkeypatch, "generator")
    here = [run.storage.fetch(file.parent) / file.name for file in weights[:2]]
    assert all(file.exists() for file in here)
    elsewhere(tmp_path, monkeypatch, "driver")
    run.prune("01/sft")
    elsewhere(tmp_path, monkeypatch, "generator")
    run.storage.fetch(weights[1].parent)  # is here: nothing new needs room
    assert here[0].exists()
    run.storage.fetch(weights[2].parent)
    assert not here[0].exists() and here[1].exists()


def test_a_checkpoint_is_the_stores_or_none(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(url)
    elsewhere(tmp_path, monkeypatch, "worker")
    at = run.storage.here(run.folder("01/sft") / CHECKPOINT)
    at.mkdir(parents=True)
    (at / "state").write_text("step 5")
    seal(at, CHECKPOINT, {"records": [5]})
    run.storage.keep(at)
    (at / "state").write_text("step 6")
    seal(at, CHECKPOINT, {"records": [6]})  # the node died before it was up
    assert read_json(run.storage.fetch(at) / "metrics.json") == {"records": [5]}
    elsewhere(tmp_path, monkeypatch, "driver")
    open_run(url).begin("01/sft")
    elsewhere(tmp_path, monkeypatch, "another worker")
    found = run.storage.fetch(run.folder("01/sft") / CHECKPOINT)
    assert not damage(found) and (found / "state").read_text() == "step 5"
    run.storage.remove(found)
    assert not run.storage.fetch(run.folder("01/sft") / CHECKPOINT).exists()


def test_a_damaged_store_is_noticed(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(url)
    folder = finish(run)
    finish(run, "02/sft")
    for phase, text in (("01/sft", b"w3ights"), ("02/sft", b"weights")):
        weights = run.folder(phase) / "policy" / "model.safetensors"
        weights.write_bytes(text)
        run.storage.keep(weights)
    run.storage.remove(run.folder("02/sft") / "policy" / "model.safetensors")
    elsewhere(tmp_path, monkeypatch, "second machine")
    second = open_run(url)
    assert not second.done("01/sft") and not second.done("02/sft")

    elsewhere(tmp_path, monkeypatch, "driver")
    manifest = read_json(folder / MANIFEST)
    manifest["files"][0]["name"] = "../../../../evil"
    write_json(folder / MANIFEST, manifest)
    run.storage.keep(folder / MANIFEST)
    elsewhere(tmp_path, monkeypatch, "third machine")
    assert not open_run(url).done("01/sft") and not list(tmp_path.rglob("evil"))


def test_a_store_that_fails_is_asked_again_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    run = open_run(url)
    store, at = run.storage.store
    left = [2]

    class Fails:
        """The store, with connections that break."""

        def __getattr__(self, name: str) -> object:
            if left[0] and name == "open_output_stream":
                left[0] -= 1
                raise OSError("connection reset")
            return getattr(store, name)

    monkeypatch.setattr(storage, "_PAUSE", 0.01)
    run.storage.__dict__["store"] = (Fails(), at)
    finish(run)
    assert left == [0]
    left[0] = 10**9
    with pytest.raises(Stopped, match=r"writing .* failed 5 times in 0 s: connection reset"):
        finish(run, "02/sft")
    run.storage.__dict__["store"] = (store, at)
    elsewhere(tmp_path, monkeypatch, "second machine")
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
    assert run.storage.fetch("org/model") == Path("org/model")
    folder = finish(run)
    assert run.storage.fetch(folder) == folder == run.storage.here(folder)
