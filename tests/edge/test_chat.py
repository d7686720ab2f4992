"""ChatRec against a real ``vllm serve`` of a tiny model on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rayrec.data import load
from rayrec.data.settings import DataConfig
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from tests.edge.conftest import ROOT, descendants
from tests.edge.network import free_port
from tests.edge.test_runs import records

CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen]]:
    """A served model whose words are those of the catalogue, and its process."""
    folder = tmp_path_factory.mktemp("served") / "model"
    titles = load(DataConfig(source="synthetic")).catalogue.titles
    make_tiny(titles, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=600), folder, 0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    port = free_port()
    # What `vllm serve` starts; the command itself looks for a package that the CPU build calls by another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "512", "--kv-cache-memory-bytes", str(2**26)]
    env = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    log = (folder.parent / "log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            alive = server.poll() is None and time.monotonic() < deadline
            assert alive, (folder.parent / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", server
    finally:
        for pid in {server.pid, *descendants(server.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.wait(30)


@pytest.mark.slow
def test_an_endpoint_is_a_row_of_its_own(endpoint: tuple[str, subprocess.Popen], tmp_path: Path) -> None:
    url, server = endpoint
    args = [
        "--preset",
        "toy",
        "--test-rows",
        "48",
        "--valid-rows",
        "16",
        "--runs",
        str(tmp_path),
        "--method",
        "ChatRec",
    ]
    command = [sys.executable, "jobs/sprec.py", *args, "--endpoint", url]
    secret = "sk-that-nobody-may-read"
    env = os.environ | {"OPENAI_API_KEY": secret}

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *more], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, check=False
        )

    done = run("--served", "other", "--name", "other")
    assert (
        done.returncode == 1 and "--served other is not among the models" in done.stderr and "['tiny']" in done.stderr
    )

    done = run("--served", "tiny", "--name", "chat")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "chat"
    (test, valid) = (r for r in records(folder) if r["kind"] == "evaluation")
    assert (test["N"], valid["N"], test["policy"], test["decode"]) == (48, 16, "base", "greedy")
    assert not (folder / "00" / "pretrain").exists()
    assert json.loads((folder / "config.json").read_text())["config"]["evaluate"]["served"] == "tiny"
    held = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert held and not any(secret.encode() in text for text in [*held, (done.stdout + done.stderr).encode()])

    for pid in {server.pid, *descendants(server.pid)}:
        os.kill(pid, signal.SIGKILL)
    done = run("--served", "tiny", "--name", "later")
    assert done.returncode == 1 and done.stderr.startswith(f"error: --endpoint {url}: Connection error")
    assert not (tmp_path / "later").exists()
