"""The service as its command starts it, for the tests that ask it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.edge.conftest import ROOT, descendants, title

TOKEN = "a word"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Served:
    """``python jobs/serve.py`` with arguments, and a client of it."""

    def __init__(self, folder: Path, *args: str):
        port, self.log = free_port(), folder / "serve.log"
        command = [sys.executable, "jobs/serve.py", "--port", str(port), "--threads", "1", *args]
        with self.log.open("a") as log:
            env = os.environ | {"RAYREC_TOKEN": TOKEN}
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)

    def until_ready(self, seconds: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                found = self.client.get("/ready")
                if found.status_code == 200:
                    return found.json()
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not ready in {seconds} s:\n{self.log.read_text()[-4000:]}")

    def post(self, path: str, body: Any) -> dict[str, Any]:
        found = self.client.post(path, json=body)
        assert found.status_code == 200, (found.status_code, found.text)
        return found.json()

    def replicas(self, of: str = "Model") -> set[int]:
        """Processes of the replicas of the model, or of the front."""
        return {pid for pid in descendants(self.process.pid) if f"ServeReplica:rayrec:{of}" in title(pid)}
