"""One sequential run over several nodes of this machine, with addresses of their own where root may give them; one of
them is lost on the way."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from rayrec.runs.manifest import damage
from rayrec.runs.storage import Storage
from tests.edge.conftest import Command, contents, descendants, read_trace, title
from tests.edge.network import Nodes, network


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    net = network()
    server = ThreadedMotoServer(ip_address=net.address if net else "127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    store |= {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "s3cret"}
    urllib.request.urlopen(urllib.request.Request(f"{store['AWS_ENDPOINT_URL']}/bucket", method="PUT")).close()
    made = Nodes(tmp_path_factory.mktemp("nodes"), store, net)
    made.add("generator")
    try:
        yield made
    finally:
        for process in reversed(made.processes):
            made.end(process)
        server.stop()
        if net:
            net.close()


def ray_logs(node: subprocess.Popen) -> Path:
    """The folder of logs of a node's Ray, as the node itself sees it."""
    (session,) = set(re.findall(r"--session_dir=(\S+)", " ".join(map(title, descendants(node.pid)))))
    return Path(f"/proc/{node.pid}/root{session}/logs")


@pytest.mark.slow
def test_a_sequential_run_that_loses_a_node_is_bit_identical(
    nodes: Nodes, runs: Path, overlapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in nodes.env.items():  # this process stands where the driver does
        monkeypatch.setenv(name, value)
    url = "s3://bucket/some/runs"
    where = ["--address", nodes.address, "--train-resource", "trainer", "--generate-resource", "generator"]
    where += ["--decode", "greedy", "beams", "--keep", "all", "--sequential", "--no-share"]
    where += ["--checkpoint-steps", "6"]
    # No node carries `trainer` yet: the plan cannot be had, and says so in seconds, unless it is to wait.
    begun, waits = time.monotonic(), ["--wait-for-resources", "90"]
    refused = Command(runs, "refused", *where, env=nodes.env, url=url)
    command = Command(runs, "nodes", *where, *waits, env=nodes.env, url=url)
    assert refused.process.wait(120) == 1
    said = refused.log.read_text()
    assert "asks for 3 CPU, 1 trainer, 1 generator" in said and "0 of 0 trainer" in said, said
    assert time.monotonic() - begun < 60 and command.process.poll() is None

    training, generator = nodes.add("trainer"), nodes.processes[1]
    trace = command.until_inside("01/prefer")
    done = {e["name"]: e["args"] for e in trace["traceEvents"]}
    assert training.poll() is None and generator.poll() is None
    assert done["01/sft"]["worker_pid"] in descendants(training.pid)
    assert done["engine"]["pid"] in descendants(generator.pid)
    nodes.add("trainer")
    nodes.end(training)
    folder = command.wait()
    events = read_trace(folder)["traceEvents"]
    named = [e for e in events if e["cat"] == "phase" and e["name"] != "00/baseline"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in named)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    workers = {e["args"].get("worker_pid") for e in events} - {None}
    assert len(workers) == 2 and done["01/sft"]["worker_pid"] in workers  # the second group worked on the spare node
    if nodes.net:
        said, places = command.log.read_text(), [nodes.addresses[node.pid] for node in (training, nodes.trainers[-1])]
        assert f"generators on {nodes.addresses[generator.pid]}\n" in said
        assert f"trainers on {', '.join(places)}\n" in said
    assert contents(folder) == contents(overlapped)
    assert (folder / "metrics.jsonl").read_bytes() == (overlapped / "metrics.jsonl").read_bytes()

    # Nothing but the store is needed: another machine has the whole run from it.
    monkeypatch.setenv("RAYREC_COPIES", str(nodes.folder / "another machine"))
    elsewhere = Storage(url)
    elsewhere.download_run(elsewhere.root / "nodes")
    assert contents(elsewhere.root / "nodes") == contents(overlapped)
    assert all(not damage(done.parent) for done in elsewhere.root.glob("nodes/*/*/DONE"))
    for name in ("metrics.jsonl", "report.html", "trace.json", "config.json", "plan.json", "01/samples.json"):
        assert (elsewhere.root / "nodes" / name).read_bytes() == (folder / name).read_bytes()
    assert len(list(nodes.folder.glob("node-*/*/nodes/01/prefer/policy"))) >= 1
    living = [node for node in nodes.processes if node.poll() is None]
    # Nothing was read from the driver's copy either: no other machine has it.
    if nodes.net:
        assert not any([*Path(f"/proc/{node.pid}/root{nodes.copies}").iterdir()] for node in living[1:])

    # The copies of the run, here and on the nodes, what was said, and Ray's logs.
    token = Path(nodes.env["RAY_AUTH_TOKEN_PATH"])
    places = [nodes.folder, *map(ray_logs, living)]
    files = [file for place in places for file in place.rglob("*") if file.is_file() and file != token]
    assert {place for place in places for file in files if place in file.parents} == {*places}
    secrets = [nodes.env["AWS_SECRET_ACCESS_KEY"].encode(), token.read_bytes()]
    told = {file: file.read_bytes() for file in [refused.log, command.log, *files]}
    assert not [file for file, said in told.items() if any(secret in said for secret in secrets)]


@pytest.mark.slow
def test_an_elastic_group_goes_on_with_fewer_and_grows_again(nodes: Nodes, runs: Path, overlapped: Path) -> None:
    where = ["--address", nodes.address, "--train-resource", "trainer", "--generate-resource", "generator"]
    where += ["--train-workers", "1:2", "--checkpoint-steps", "5", "--no-share", "--method", "BIGRec"]
    where += ["--engine", "torch", "--generators", "2", "--zero-stage", "1"]
    nodes.add("generator")
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
