"""A submitted Ray job on a cluster made by ``ray start``, with token authentication on."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.conftest import ROOT, TOY, descendants, gone, read_trace
from tests.edge.network import RAY, free_port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment in which ``ray job submit`` reaches a cluster of our own."""
    token = tmp_path_factory.mktemp("cluster") / "token"
    token.write_text(secrets.token_hex(32))
    folder = tempfile.mkdtemp(prefix="ray-")  # where runs beside it do not look for a cluster, and short for sockets
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": folder}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env.pop("RAY_ADDRESS", None)
    dashboard, gcs, agent = free_port(), free_port(), free_port()
    command = [RAY, "start", "--head", f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=4", "--block"]
    command += [f"--dashboard-agent-listen-port={agent}"]
    head = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    env["RAY_API_SERVER_ADDRESS"], env["HEAD"] = f"http://127.0.0.1:{dashboard}", str(head.pid)
    env["GCS"] = f"127.0.0.1:{gcs}"
    try:
        deadline = time.monotonic() + 90
        while subprocess.run([RAY, "job", "list"], env=env, capture_output=True, timeout=60).returncode:
            assert head.poll() is None and time.monotonic() < deadline, "the cluster did not come up"
            time.sleep(1)
        yield env
    finally:
        mine = descendants(head.pid)
        for pid in {head.pid, *mine}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def submit(env: dict[str, str], *args: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
    how = [] if wait else ["--no-wait", "--submission-id", "stopped"]
    command = [RAY, "job", "submit", *how, "--working-dir", "."]
    command += ["--runtime-env-json", '{"excludes": [".venv", ".git", "runs"]}', "--", sys.executable, "jobs/sprec.py"]
    deadline = time.monotonic() + 90
    while True:
        done = subprocess.run([*command, *args], env=env, cwd=ROOT, capture_output=True, text=True, timeout=400)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)  # the head answers before its job agent does


def test_a_submitted_job_runs_stops_and_resumes(cluster: dict[str, str], runs: Path) -> None:
    # Its own training from the first step: another run's would be taken from the shelf in a moment.
    small = [*TOY, "--iterations", "0", "--engine", "torch", "--no-share", "--runs", str(runs), "--name", "job"]
    before = submit(cluster, *small, wait=False)
    assert before.returncode == 0, before.stdout + before.stderr
    deadline = time.monotonic() + 200
    while not read_trace(runs / "job").get("running", {}).get("00/pretrain", {}).get("step"):
        assert time.monotonic() < deadline, "the job did not reach its first step"
        time.sleep(0.05)
    names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(int(cluster["HEAD"]))}
    workers = {p for p, n in names.items() if any(w in n for w in (b"RayTrainWorker", b"Generator", b"jobs/sprec.py"))}
    subprocess.run([RAY, "job", "stop", "stopped"], env=cluster, check=True, capture_output=True, timeout=60)
    assert len(workers) >= 3 and gone(workers)
    base = (runs / "job" / "00" / "base" / "DONE").stat()
    done = submit(cluster, *small)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "succeeded" in done.stdout and (runs / "job" / "report.html").exists()
    trace = read_trace(runs / "job")
    made = [event["name"] for event in trace["traceEvents"] if event["cat"] == "phase"]
    assert len(trace["attempts"]) == 2 and len(made) == len({*made})  # nothing was made twice
    assert (runs / "job" / "00" / "base" / "DONE").stat() == base


#: Wrong settings of a driver's token, and what the driver says of each.
WRONG_TOKENS: list[tuple[dict[str, str], str]] = [
    ({}, "InvalidAuthToken"),
    ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}, "InvalidAuthToken"),
    ({"RAY_AUTH_MODE": "token"}, "no authentication token was found"),
    ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, "/nowhere"),
]


def test_a_driver_without_the_token_is_told_in_seconds(cluster: dict[str, str], tmp_path: Path) -> None:
    env = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH_")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "jobs/sprec.py", *TOY, "--runs", str(tmp_path / "runs"), "--address", cluster["GCS"]]
    drivers = [
        subprocess.Popen(command, cwd=ROOT, env=env | given, stderr=subprocess.PIPE, text=True)
        for given, _ in WRONG_TOKENS
    ]
    for driver, (given, says) in zip(drivers, WRONG_TOKENS, strict=True):
        told = driver.communicate(timeout=100)[1].splitlines()[-1]
        assert driver.returncode == 1, (given, told)
        assert told.startswith(f"error: The cluster at {cluster['GCS']} cannot be joined: ") and says in told
        assert told.endswith(
            "Set RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN or the path of a file with it in "
            "RAY_AUTH_TOKEN_PATH, or take --address local to compute on this machine alone."
        )
    assert not (tmp_path / "runs").exists()
