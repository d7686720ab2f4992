"""Clusters of several nodes on one machine: with addresses of their own, in network namespaces, where root may make
such, and all on loopback elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.edge.conftest import alive, descendants

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Network:
    """A bridge that this process is on, and namespaces that are joined to it."""

    def __init__(self) -> None:
        self.bridge = f"rr{os.getpid()}"
        self.subnet = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
        self.address = f"{self.subnet}.1"
        self.names: list[str] = []
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("address", "add", f"{self.address}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def add(self, *hidden: Path) -> tuple[str, list[str]]:
        """Make a namespace; its address, and the words before a command that is to run in it.

        What such a command does not share with others are the network and Ray's folder of sockets and logs; the folders
        ``hidden`` are empty to it.
        """
        number = len(self.names) + 2
        name, address, near = f"{self.bridge}n{number}", f"{self.subnet}.{number}", f"{self.bridge}v{number}"
        _ip("netns", "add", name)
        self.names.append(name)
        _ip("link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", near, "master", self.bridge, "up")
        for device in (["address", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            _ip("-n", name, *device)
        _ip("-n", name, "link", "set", "lo", "up")
        own = shlex.join(["/tmp/ray", *map(str, hidden)])
        inside = f'for own in {own}; do mkdir -p "$own" && mount -t tmpfs none "$own" || exit; done; exec "$@"'
        return address, ["ip", "netns", "exec", name, "sh", "-c", inside, "node"]

    def cut(self, address: str) -> None:
        """Take the cable out of the machine with this address."""
        _ip("link", "set", f"{self.bridge}v{address.rpartition('.')[2]}", "down")

    def close(self) -> None:
        """Remove all of it."""
        for number, name in enumerate(self.names, 2):
            # A cable outlives its namespace for a while, unless it is taken away, and the next network has the name.
            for what in (["link", "delete", f"{self.bridge}v{number}"], ["netns", "delete", name]):
                with contextlib.suppress(subprocess.CalledProcessError):
                    _ip(*what)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", self.bridge)


def network() -> Network | None:
    """A network, or None where this machine does not let us make one."""
    made = None
    try:
        made = Network()
        _, words = made.add()
        subprocess.run([*words, "true"], check=True, capture_output=True)
        return made
    except (OSError, subprocess.CalledProcessError):
        if made is not None:
            made.close()
        return None


class Nodes:
    """A head, whose one CPU is for Ray Data, and nodes that carry custom resources; they share a store, no folder.

    The driver has its copies of runs in ``copies``, each node in a folder of its own, and where they have namespaces
    no node sees the driver's.
    """

    def __init__(self, folder: Path, store: dict[str, str], net: Network | None, head_cpus: int = 1):
        (folder / "token").write_text(secrets.token_hex(32))
        self.copies = folder / "copies"
        self.env = {**os.environ, **store, "RAYREC_COPIES": str(self.copies)}
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"
        self.env.pop("RAY_ADDRESS", None)
        self.folder, self.net, self.processes = folder, net, list[subprocess.Popen]()
        self.addresses: dict[int, str] = {}
        host, port = net.address if net else "127.0.0.1", free_port()
        self.address, self.trainers = f"{host}:{port}", list[subprocess.Popen]()
        dashboard = free_port()
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        head = ["--head", f"--port={port}", f"--node-ip-address={host}", f"--dashboard-port={dashboard}"]
        self._start([], *head, f"--num-cpus={head_cpus}")

    def add(self, resource: str) -> subprocess.Popen:
        """Start a node that carries one of ``resource``."""
        address, words = self.net.add(self.copies) if self.net else ("127.0.0.1", [])
        where = [f"--address={self.address}", f"--node-ip-address={address}"]
        made = self._start(words, *where, "--num-cpus=2", f"--resources={json.dumps({resource: 1})}")
        self.addresses[made.pid] = address
        if resource == "trainer":
            self.trainers.append(made)
        return made

    def _start(self, words: list[str], *args: str) -> subprocess.Popen:
        command = [*words, RAY, "start", *args, "--block", f"--dashboard-agent-listen-port={free_port()}"]
        name = f"node-{len(self.processes)}"
        env = self.env | {"RAYREC_COPIES": str(self.folder / name)} | ({"GLOO_SOCKET_IFNAME": "eth0"} if words else {})
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
