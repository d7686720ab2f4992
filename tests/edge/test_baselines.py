"""jobs/baselines.py: real Ray Train workers, and a folder that resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from rayrec.runs.lease import machine, start_time
from tests.edge.conftest import ROOT, alive, descendants, gone, read_trace, title

SMALL = ["--history", "10", "--test-rows", "300", "--valid-rows", "100", "--hidden", "16", "--dropout", "0"]
SMALL += ["--epochs", "2", "--threads", "1"]


def run_baselines(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/baselines.py", *SMALL, *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def baselines(*args: str) -> str:
    done = run_baselines(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(folder: Path, name: str) -> list[dict]:
    """Test predictions of a model with what each row's user had in the history and in the candidates."""
    test = {row["example_id"]: row for row in pq.read_table(folder / "examples" / "test.parquet").to_pylist()}
    made = pq.read_table(folder / "00" / name / "predictions.parquet").to_pylist()
    return [{**test[row["example_id"]], **row} for row in made if row["example_id"] in test]


def epochs_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "00" / name / "epochs.jsonl").read_text().splitlines()]


def test_models_are_trained_ranked_and_kept(tmp_path: Path) -> None:
    folder, found = tmp_path / "b", tmp_path / "found.json"
    args = ["--runs", str(tmp_path), "--name", "b", "--train-workers", "2", "--json", str(found), "--models", "sasrec"]
    said = baselines(*args)
    assert "00/sasrec      trainers    starts: 2 epochs" in said and "trainers    done: 2 epochs in" in said
    first = json.loads(found.read_text())
    assert first[0]["model"] == "sasrec" and first[0]["seconds"] > 0
    assert 0 < first[0]["HR@10"] < 1 and 0 < first[0]["HR@10_unmasked"] < 1
    epochs = epochs_of(folder, "sasrec")
    assert [e["epoch"] for e in epochs] == [1, 2] and epochs[1]["loss"] < epochs[0]["loss"]
    masked = [row for row in rows_of(folder, "sasrec") if row["decode"] == "masked"]
    assert len(masked) == 300 and not any(set(row["history"]) & set(row["titles"]) for row in masked)

    baselines(*args, "popular")  # another model in the same folder: what is there stays
    second = json.loads(found.read_text())
    assert second[:1] == first and second[1]["model"] == "popular"
    assert [a["left"] for a in read_trace(folder)["attempts"]] == [["00/sasrec"], ["00/popular"]]

    record = folder / ".processes.json"
    assert not record.exists()
    record.write_text(json.dumps({"machine": machine(), "processes": [[os.getpid(), start_time(psutil.Process())]]}))
    refused = run_baselines(*args)
    assert refused.returncode == 1 and f"is being written by process {os.getpid()}" in refused.stderr


@pytest.mark.slow
def test_a_silent_worker_is_told_and_ends_the_job(tmp_path: Path) -> None:
    folder, log = tmp_path / "b", tmp_path / "log"
    args = ["--runs", str(tmp_path), "--name", "b", "--models", "sasrec", "--train-workers", "2"]
    args += ["--epochs", "10000", "--patience", "10000", "--wait-seconds", "10", "--wait-for-resources", "60"]
    with log.open("w") as file:
        command = [sys.executable, "jobs/baselines.py", *SMALL, *args]
        job = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    started = {job.pid}
    try:
        deadline = time.monotonic() + 120
        while not read_trace(folder).get("running", {}).get("00/sasrec", {}).get("epoch"):
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        started |= descendants(job.pid)
        os.kill(next(pid for pid in started if "RayTrainWorker" in title(pid)), signal.SIGSTOP)
        assert job.wait(10 + 20) == 1
        assert gone(started), {title(pid) for pid in alive(started)}
    finally:
        for pid in alive(started | descendants(job.pid)):
            os.kill(pid, signal.SIGKILL)
    said = log.read_text()
    assert "no heartbeat from the training workers for 5 s; given up after 10 s" in said
    assert "error: 00/sasrec: no heartbeat from the training workers for 10 s (last: {" in said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("The same command goes on at the first unfinished phase.")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_once(tmp_path: Path) -> None:
    refused = run_baselines("--runs", str(tmp_path), "--name", "b", "--models", "sasrec", "--lr", "1e30")
    assert refused.returncode == 1 and "Traceback" not in refused.stdout + refused.stderr
    told = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and told[0].startswith("error: 00/sasrec: Epoch 1: the loss is nan. Lower"), refused.stderr
    assert not (tmp_path / "b" / "00" / "sasrec" / "DONE").exists()
