"""Where the runs of a fault lie."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


class Place:
    """A folder for logs and runs or, with ``url``, an object store and the driver's copies of what is in it."""

    def __init__(self, runs: Path):
        self.runs, self.url, self.env = runs, "", dict(os.environ)

    def serve(self) -> None:
        """Start an S3 server with an empty bucket."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = "s3://bucket/runs"
        endpoint = f"http://127.0.0.1:{port}"
        keys = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
        self.env |= keys | {"AWS_DEFAULT_REGION": "us-east-1"}
        self.move()
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "no S3 server"
                time.sleep(0.2)

    def move(self) -> None:
        """Go to a machine that has no copy of anything."""
        shutil.rmtree(self.env.get("RAYREC_COPIES", ""), ignore_errors=True)
        self.env["RAYREC_COPIES"] = os.environ["RAYREC_COPIES"] = tempfile.mkdtemp(prefix="rayrec-copies-")


@contextlib.contextmanager
def place_of(kind: str, runs: Path) -> Iterator[Place]:
    """A place of one kind: ``folder``, ``mount`` (a small file system) or ``store``."""
    place = Place(runs)
    if kind == "mount":
        place.runs = Path(tempfile.mkdtemp(prefix="rayrec-faults-"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(place.runs)], check=True)
    if kind == "store":
        place.serve()
    try:
        yield place
    finally:
        if kind == "mount":
            subprocess.run(["umount", "--lazy", str(place.runs)], check=True)
            place.runs.rmdir()
        if kind == "store":
            place.server.kill()
            place.server.wait(30)
            shutil.rmtree(place.env["RAYREC_COPIES"], ignore_errors=True)
