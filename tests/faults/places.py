"""The places of struck runs: folders, file systems, object stores and clusters."""

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
from typing import Any

from tests.edge.network import RAY, Network, Nodes, network

#: Prints the ids of the placement groups that still exist after at most 15 s.
_GROUPS = """
import sys, time, ray
from ray.util import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False)
deadline = time.monotonic() + 15
while left := [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]:
    if time.monotonic() > deadline:
        break
    time.sleep(0.5)
print(*left)
"""


class Place:
    """A folder for logs and runs; with ``url`` an object store and the driver's copies of its files."""

    def __init__(self, runs: Path):
        self.runs, self.url, self.env = runs, "", dict(os.environ)
        self.args, self.before, self.roots = list[str](), list[str](), set[int]()
        """Flags of a run, words before its command, and processes other than the driver that start processes for it."""
        self.logs = runs
        self.struck = 0.0
        """When the fault struck, in seconds since the epoch."""
        self.unplugged = set[int]()
        """Processes of an unreachable node: they end when their raylet gives up."""

    @property
    def where(self) -> dict[str, Any]:
        """Arguments of a Command in this place, other than its folder and its flags."""
        return {"env": self.env, "url": self.url, "before": self.before, "logs": self.logs}

    def serve(self, host: str = "127.0.0.1") -> None:
        """Start an S3 server with an empty bucket."""
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = "s3://bucket/runs"
        endpoint = f"http://{host}:{port}"
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

    def join(self, net: Network | None) -> None:
        """Start a head, a generator node and two trainer nodes, which share only an S3 server."""
        self.serve(net.address if net else "127.0.0.1")
        store = {name: value for name, value in self.env.items() if name.startswith("AWS_")}
        self.nodes = Nodes(Path(tempfile.mkdtemp(prefix="rayrec-nodes-")), store, net)
        for resource in ("generator", "trainer", "trainer"):
            self.nodes.add(resource)
        self.env = self.nodes.env
        # This process reads the same copies as the driver.
        os.environ |= {name: self.env[name] for name in ("RAYREC_COPIES", *store)}
        self.args = ["--address", self.nodes.address]
        self.args += ["--train-resource", "trainer", "--generate-resource", "generator"]
        self.roots = {node.pid for node in self.nodes.processes}

    def submitted(self) -> None:
        """Start a cluster to which the command is submitted with ``ray job submit``."""
        self.nodes = Nodes(Path(tempfile.mkdtemp(prefix="rayrec-nodes-")), {}, None, head_cpus=4)
        self.env = self.nodes.env | {"RAY_API_SERVER_ADDRESS": self.nodes.dashboard}
        deadline = time.monotonic() + 90
        while subprocess.run([RAY, "job", "list"], env=self.env, capture_output=True, timeout=60).returncode:
            assert time.monotonic() < deadline, "the cluster did not come up"
            time.sleep(1)
        time.sleep(10)  # the head answers before its job agent does
        self.before = [RAY, "job", "submit", "--working-dir", "."]
        self.before += ["--runtime-env-json", '{"excludes": [".venv", ".git", "runs"]}', "--"]
        self.roots = {node.pid for node in self.nodes.processes}

    def groups(self) -> list[str]:
        """Placement groups that a joined cluster still holds after up to 15 s; a private cluster ends with its run."""
        if not self.roots:
            return []
        listed = subprocess.run(
            [sys.executable, "-c", _GROUPS, self.nodes.address],
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return listed.stdout.splitlines()[-1].split()

    def kept(self, folder: Path) -> Path:
        """The files of a run: its folder, or a copy of its files in the object store."""
        if not self.url:
            return folder
        from pyarrow import fs

        kept = Path(tempfile.mkdtemp(prefix="rayrec-kept-"))
        names = {"endpoint_override": "AWS_ENDPOINT_URL", "access_key": "AWS_ACCESS_KEY_ID"}
        names |= {"secret_key": "AWS_SECRET_ACCESS_KEY", "region": "AWS_DEFAULT_REGION"}
        store = fs.S3FileSystem(**{name: self.env[variable] for name, variable in names.items()})
        source = f"{self.url.removeprefix('s3://')}/{folder.name}"
        fs.copy_files(source, str(kept), source_filesystem=store)
        return kept

    def move(self) -> None:
        """Continue on a machine without copies of the store's files."""
        shutil.rmtree(self.env.get("RAYREC_COPIES", ""), ignore_errors=True)
        self.env["RAYREC_COPIES"] = os.environ["RAYREC_COPIES"] = tempfile.mkdtemp(prefix="rayrec-copies-")


@contextlib.contextmanager
def place_of(kind: str, runs: Path) -> Iterator[Place]:
    """A place of one kind: ``folder``, ``mount`` (a small file system), ``store``, ``cluster`` or ``submitted``."""
    place, net = Place(runs), None
    if kind == "mount":
        place.runs = Path(tempfile.mkdtemp(prefix="rayrec-faults-"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(place.runs)], check=True)
    if kind == "store":
        place.serve()
    try:
        if kind == "cluster":
            net = network()
            place.join(net)
        if kind == "submitted":
            place.submitted()
        yield place
    finally:
        for process in reversed(place.nodes.processes) if place.roots else ():
            place.nodes.end(process)
        if net:
            net.close()
        if kind == "mount":
            subprocess.run(["umount", "--lazy", str(place.runs)], check=True)
            place.runs.rmdir()
        if kind in ("store", "cluster"):
            place.server.kill()
            place.server.wait(30)
            shutil.rmtree(place.env["RAYREC_COPIES"], ignore_errors=True)
