"""A submitted Ray job on a cluster made by ``ray start``, with token authentication on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.conftest import ROOT, TOY, alive, descendants, read_trace

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment in which ``ray job submit`` reaches a cluster of our own."""
    home = tmp_path_factory.mktemp("home")
    env = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_TMPDIR": "/tmp"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env.pop("RAY_ADDRESS", None)
    subprocess.run([RAY, "get-auth-token", "--generate"], env=env, check=True, capture_output=True, timeout=60)
    dashboard, gcs = free_port(), free_port()
    command = [RAY, "start", "--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=4", "--block"]
    command += ["--node-ip-address=127.0.0.1"]
    head = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 90
        while subprocess.run([RAY, "job", "list"], env=env, capture_output=True, timeout=60).returncode:
            assert head.poll() is None and time.monotonic() < deadline, "the cluster did not come up"
            time.sleep(1)
        yield env
    finally:
        mine = descendants(head.pid)
        head.send_signal(signal.SIGTERM)
        head.wait(30)
        for pid in alive(mine):
            os.kill(pid, signal.SIGKILL)


def submit(env: dict[str, str], *args: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
    command = [
        RAY,
        "job",
        "submit",
        *([] if wait else ["--no-wait", "--submission-id", "stopped"]),
        "--working-dir",
        ".",
    ]
    command += ["--runtime-env-json", '{"excludes": [".venv", ".git", "runs"]}', "--", sys.executable, "jobs/sprec.py"]
    return subprocess.run([*command, *args], env=env, cwd=ROOT, capture_output=True, text=True, timeout=400)


def test_a_submitted_job_refuses_relative_paths(cluster: dict[str, str]) -> None:
    done = submit(cluster, "--preset", "toy", "--runs", "runs")
    assert done.returncode != 0
    assert "--runs runs is relative" in done.stdout and "absolute path" in done.stdout


def test_a_submitted_job_runs_stops_and_resumes(cluster: dict[str, str], runs: Path) -> None:
    small = [*TOY, "--iterations", "1", "--runs", str(runs), "--name", "job"]
    before = submit(cluster, *small, wait=False)
    assert before.returncode == 0, before.stdout + before.stderr
    deadline = time.monotonic() + 200
    while not read_trace(runs / "job").get("running", {}).get("00/pretrain", {}).get("step"):
        assert time.monotonic() < deadline, "the job did not reach its first step"
        time.sleep(0.5)
    workers = {int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if b"RayTrainWorker" in p.read_bytes()}
    subprocess.run([RAY, "job", "stop", "stopped"], env=cluster, check=True, capture_output=True, timeout=60)
    time.sleep(15)
    assert workers and not alive(workers)
    done = submit(cluster, *small)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "succeeded" in done.stdout and (runs / "job" / "report.html").exists()
