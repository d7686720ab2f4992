"""One sequential run over several raylets of this machine, each a node of its own; one of them is lost on the way."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from rayrec.folders import damage
from rayrec.storage import Storage
from tests.edge.conftest import Command, alive, contents, descendants, read_trace
from tests.edge.test_job import RAY, free_port


class Nodes:
    """A head with one CPU, for Ray Data, and nodes that carry custom resources; they share an object store, no folder.

    The driver has its copies of runs in ``folder/copies``, each node in a folder of its own.
    """

    def __init__(self, folder: Path, store: dict[str, str]):
        (folder / "token").write_text(secrets.token_hex(32))
        self.env = {**os.environ, **store, "RAYREC_COPIES": str(folder / "copies")}
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"
        self.env.pop("RAY_ADDRESS", None)
        self.folder, self.port, self.processes = folder, free_port(), list[subprocess.Popen]()
        self._start("--head", f"--port={self.port}", f"--dashboard-port={free_port()}", "--num-cpus=1")
        self.address, self.trainers = f"127.0.0.1:{self.port}", list[subprocess.Popen]()
        self.generator = self.add("generator")

    def add(self, resource: str) -> subprocess.Popen:
        """Start a node that carries one of ``resource``."""
        resources = json.dumps({resource: 1})
        made = self._start(f"--address=127.0.0.1:{self.port}", "--num-cpus=2", f"--resources={resources}")
        if resource == "trainer":
            self.trainers.append(made)
        return made

    def _start(self, *args: str) -> subprocess.Popen:
        command = [RAY, "start", *args, "--block", f"--dashboard-agent-listen-port={free_port()}"]
        name = f"node-{len(self.processes)}"
        env = self.env | {"RAYREC_COPIES": str(self.folder / name)}
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        self.processes.append(process)
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (self.folder / f"{name}.log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (self.folder / f"{name}.log").read_text()
            time.sleep(0.1)
        return process

    def end(self, process: subprocess.Popen) -> None:
        """Lose a node at once: its raylet, its workers, everything."""
        for pid in {process.pid} | alive(descendants(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(30)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    store |= {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "s3cret"}
    urllib.request.urlopen(urllib.request.Request(f"{store['AWS_ENDPOINT_URL']}/bucket", method="PUT")).close()
    made = Nodes(tmp_path_factory.mktemp("nodes"), store)
    try:
        yield made
    finally:
        for process in reversed(made.processes):
            made.end(process)
        server.stop()


def test_a_sequential_run_that_loses_a_node_is_bit_identical(
    nodes: Nodes, runs: Path, overlapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in nodes.env.items():  # this process stands where the driver does
        monkeypatch.setenv(name, value)
    url = "s3://bucket/some/runs"
    where = ["--address", nodes.address, "--train-resource", "trainer", "--generate-resource", "generator"]
    where += ["--decode", "greedy", "beams", "--keep", "all", "--sequential", "--no-share"]
    where += ["--checkpoint-steps", "6"]
    # No node carries `trainer` yet: the plan cannot be had, and says so in seconds.
    begun = time.monotonic()
    command = Command(runs, "nodes", *where, env=nodes.env, url=url)
    assert command.process.wait(120) == 1
    said = command.log.read_text()
    assert "asks for 3 CPU, 1 trainer, 1 generator" in said and "0 of 0 trainer" in said, said
    assert time.monotonic() - begun < 60

    training = nodes.add("trainer")
    command = Command(runs, "nodes", *where, "--wait-for-resources", "60", env=nodes.env, url=url)
    trace = command.until_inside("01/prefer")
    done = {e["name"]: e["args"] for e in trace["traceEvents"]}
    assert training.poll() is None and nodes.generator.poll() is None
    assert done["01/sft"]["worker_pid"] in descendants(training.pid)
    assert done["engine"]["pid"] in descendants(nodes.generator.pid)
    nodes.add("trainer")
    nodes.end(training)
    folder = command.wait()
    events = read_trace(folder)["traceEvents"]
    named = [e for e in events if e["cat"] == "phase" and e["name"] != "00/baseline"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in named)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    workers = {e["args"].get("worker_pid") for e in events} - {None}
    assert len(workers) == 2 and done["01/sft"]["worker_pid"] in workers  # the second group worked on the spare node
    assert contents(folder) == contents(overlapped)
    assert (folder / "metrics.jsonl").read_bytes() == (overlapped / "metrics.jsonl").read_bytes()

    # Nothing but the store is needed: another machine has the whole run from it, and no key is in it.
    monkeypatch.setenv("RAYREC_COPIES", str(nodes.folder / "another machine"))
    elsewhere = Storage(url)
    elsewhere.pull(elsewhere.root / "nodes")
    assert contents(elsewhere.root / "nodes") == contents(overlapped)
    assert all(not damage(done.parent) for done in elsewhere.root.glob("nodes/*/*/DONE"))
    for name in ("metrics.jsonl", "report.html", "trace.json", "config.json", "plan.json", "01/samples.json"):
        assert (elsewhere.root / "nodes" / name).read_bytes() == (folder / name).read_bytes()
        assert "s3cret" not in (folder / name).read_text()
    assert len(list(nodes.folder.glob("node-*/*/nodes/01/prefer/policy"))) >= 1


@pytest.mark.slow
def test_an_elastic_group_goes_on_with_fewer_and_grows_again(nodes: Nodes, runs: Path, overlapped: Path) -> None:
    where = ["--address", nodes.address, "--train-resource", "trainer", "--generate-resource", "generator"]
    where += ["--train-workers", "1:2", "--checkpoint-steps", "5", "--no-share", "--method", "BIGRec"]
    where += ["--engine", "torch"]
    while sum(node.poll() is None for node in nodes.trainers) < 2:
        nodes.add("trainer")
    command = Command(runs, "elastic", *where, "--test-rows", "32", "--valid-rows", "16", env=nodes.env)

    def past_a_checkpoint(trace: dict) -> bool:
        return trace["running"].get("00/pretrain", {}).get("step", 0) > 6

    command.until(past_a_checkpoint, "step past a checkpoint")
    assert len([p for p in command.log.read_text().splitlines() if "training workers: 2 of (1, 2)" in p]) == 1
    nodes.end(next(node for node in nodes.trainers if node.poll() is None))
    command.until(lambda trace: "training workers: 1 of" in command.log.read_text(), "group of one")
    nodes.add("trainer")
    folder = command.wait()
    said = command.log.read_text()
    sizes = [line.split()[2] for line in said.splitlines() if line.startswith("training workers: ")]
    assert sizes == ["2", "1", "2"], said
    events = {e["name"]: e["args"] for e in read_trace(folder)["traceEvents"] if e["cat"] == "phase"}
    assert events["00/pretrain"]["resumed_at"] in (5, 10, 15, 20, 25, 30, 35)
    steps = [json.loads((f / "00/pretrain/metrics.json").read_text())["steps"] for f in (folder, overlapped)]
    assert all(abs(a["loss"] - b["loss"]) < 2e-3 * b["loss"] for a, b in zip(*steps, strict=True))
