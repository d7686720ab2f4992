"""The kinds of faults: each is a function that strikes a real run.

A fault strikes during a phase. Afterwards the job continues by itself, or the same command is started again; either
way it ends with the files and metrics of an undisturbed run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.edge.conftest import Command, descendants, title
from tests.faults.places import Place

#: Gives vLLM's engine a process of its own, which it has by default only on a GPU.
ENGINE_APART = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
Strike = Callable[[Command, random.Random, Place], None]
TRAINING, GENERATING = ("pretrain", "sft", "prefer"), ("negatives", "evaluate")


def patiently(find: Callable[[], list[Any]], what: str) -> list[Any]:
    """Wait until ``find`` finds something: a phase begins before its processes exist."""
    deadline = time.monotonic() + 120
    while not (found := find()):
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.2)
    return found


def named(word: str, *roots: int) -> list[int]:
    """The descendants of ``roots`` whose command line contains ``word``."""
    return patiently(lambda: [pid for root in roots for pid in sorted(descendants(root)) if word in title(pid)], word)


def kill(word: str) -> Strike:
    """SIGKILL one of these processes."""

    def strike(command: Command, draw: random.Random, place: Place) -> None:
        found = named(word, command.process.pid, *place.roots)
        place.struck = time.time()
        os.kill(draw.choice(found), signal.SIGKILL)

    return strike


def kill_next(word: str) -> Strike:
    """SIGKILL all of these processes, and one that takes their place while it comes up."""

    def strike(command: Command, draw: random.Random, place: Place) -> None:
        found = named(word, command.process.pid)
        place.struck = time.time()
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        fresh = patiently(lambda: [pid for pid in named(word, command.process.pid) if pid not in found], f"new {word}")
        os.kill(fresh[0], signal.SIGKILL)

    return strike


def stop(word: str, seconds: float = 30) -> Strike:
    """SIGSTOP one of these processes for a while; the empty ``word`` is the driver."""

    def strike(command: Command, draw: random.Random, place: Place) -> None:
        pid = draw.choice(named(word, command.process.pid, *place.roots)) if word else command.process.pid
        place.struck = time.time()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):  # a stopped process can still be killed
            os.kill(pid, signal.SIGCONT)

    return strike


def kill_driver(command: Command, draw: random.Random, place: Place) -> None:
    """SIGKILL the driver; its actors and its Ray cluster end after it."""
    command.kill()


def interrupt(command: Command, draw: random.Random, place: Place) -> None:
    """SIGTERM, as a scheduler sends it."""
    command.process.send_signal(signal.SIGTERM)


def _finished_file(command: Command, draw: random.Random) -> Path:
    done = sorted(command.folder.glob("*/*/DONE"))
    files = [p for p in draw.choice(done).parent.rglob("*") if p.is_file() and p.name != "DONE" and p.stat().st_size]
    return draw.choice(sorted(files))


def truncate(command: Command, draw: random.Random, place: Place) -> None:
    """The driver dies, and a file of a finished phase is cut short."""
    command.kill()
    file = _finished_file(command, draw)
    file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])


def flip(command: Command, draw: random.Random, place: Place) -> None:
    """The driver dies, and one bit of a file of a finished phase is flipped."""
    command.kill()
    file = _finished_file(command, draw)
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def fill(command: Command, draw: random.Random, place: Place) -> None:
    """The storage is full until the job has ended."""
    filler = command.folder.parent / "filler"
    with filler.open("wb", buffering=0) as file:  # closing a buffered file would fail once more
        try:
            while True:
                file.write(b"\0" * 2**16)
        except OSError:
            pass
    command.process.wait(300)
    filler.unlink()


def forbid(command: Command, draw: random.Random, place: Place) -> None:
    """The run folder is read-only until the job has ended."""
    folder = str(command.folder)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        command.process.wait(300)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def silence(seconds: float) -> Strike:
    """The object store accepts connections and answers nothing for a while."""

    def strike(command: Command, draw: random.Random, place: Place) -> None:
        place.server.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        place.server.send_signal(signal.SIGCONT)

    return strike


def slow(command: Command, draw: random.Random, place: Place) -> None:
    """The object store runs a tenth of the time for half a minute."""
    for _ in range(60):
        place.server.send_signal(signal.SIGSTOP)
        time.sleep(0.45)
        place.server.send_signal(signal.SIGCONT)
        time.sleep(0.05)


def cut_off(command: Command, draw: random.Random, place: Place) -> None:
    """The object store answers nothing until the job has ended."""
    place.server.send_signal(signal.SIGSTOP)
    try:
        command.process.wait(400)
    finally:
        place.server.send_signal(signal.SIGCONT)


def lose_machine(command: Command, draw: random.Random, place: Place) -> None:
    """The driver dies with all processes and files of its machine; the next command starts on another machine."""
    there = descendants(command.process.pid)
    command.kill()
    for pid in there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    place.move()


def _node_of(place: Place, word: str) -> subprocess.Popen:
    """The node of an actor with ``word`` in its title."""

    def busy() -> list[subprocess.Popen]:
        nodes = [node for node in place.nodes.processes if node.poll() is None]
        return [node for node in nodes if any(word in title(pid) for pid in descendants(node.pid))]

    return patiently(busy, f"node with {word}")[0]


def lose_node(command: Command, draw: random.Random, place: Place) -> None:
    """SIGKILL all processes of a training worker's node; another node is free."""
    node = _node_of(place, "ray::RayTrainWorker")
    place.struck = time.time()
    place.nodes.end(node)


def lose_generators_node(command: Command, draw: random.Random, place: Place) -> None:
    """SIGKILL all processes of the only generator node; another node starts a little later."""
    node = _node_of(place, "ray::Generator")
    place.struck = time.time()
    place.nodes.end(node)
    place.roots.add(place.nodes.add("generator").pid)


def unplug(word: str) -> Strike:
    """Disconnect the node of a process with ``word`` in its title from the network. Without network namespaces its
    raylet is stopped instead. Another node is free; for generators it starts a little later."""

    def strike(command: Command, draw: random.Random, place: Place) -> None:
        node = _node_of(place, word)
        place.struck = time.time()
        place.unplugged |= descendants(node.pid)
        if place.nodes.net:
            place.nodes.net.cut(place.nodes.addresses[node.pid])
        else:
            for pid in descendants(node.pid):
                if "raylet/raylet" in title(pid):
                    os.kill(pid, signal.SIGSTOP)
        if word == "ray::Generator":
            place.roots.add(place.nodes.add("generator").pid)

    return strike


def kill_supervisor(command: Command, draw: random.Random, place: Place) -> None:
    """SIGKILL the supervisor of a submitted job's driver."""
    os.kill(named("JobSupervisor", min(place.roots))[0], signal.SIGKILL)


@dataclass(frozen=True)
class Kind:
    """One kind of fault."""

    strike: Strike
    phases: tuple[str, ...] = TRAINING + GENERATING
    """Kinds of phases that it strikes."""
    by_itself: bool = False
    """Whether the job continues without a new command."""
    place: Literal["folder", "mount", "store", "cluster", "submitted"] = "folder"
    """Where the run is kept (any folder, a small file system of its own, an object store), or where it runs (four nodes
    that share a store, a cluster to which a job is submitted)."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the run, in addition to those of the place."""
    pairs: bool = False
    """Whether the run has two training workers and two generators, one of which is struck."""


KINDS = {
    "generator killed": Kind(kill("ray::Generator"), GENERATING, by_itself=True),
    "engine killed": Kind(kill("VLLM::EngineCore"), GENERATING, by_itself=True, env=ENGINE_APART),
    "generator of an engine killed": Kind(kill("ray::Generator"), GENERATING, by_itself=True, env=ENGINE_APART),
    "one of two generators killed": Kind(kill("ray::Generator"), GENERATING, by_itself=True, pairs=True),
    "worker killed": Kind(kill("ray::RayTrainWorker"), TRAINING, by_itself=True),
    "one of two workers killed": Kind(kill("ray::RayTrainWorker"), TRAINING, by_itself=True, pairs=True),
    "worker killed, and the next": Kind(kill_next("ray::RayTrainWorker"), TRAINING, by_itself=True),
    "controller killed": Kind(kill("ray::TrainController"), TRAINING, by_itself=True),
    "board killed": Kind(kill("ray::Board"), TRAINING),
    "raylet killed": Kind(kill("raylet/raylet")),
    "GCS killed": Kind(kill("gcs/gcs_server")),
    "driver killed": Kind(kill_driver),
    "driver terminated": Kind(interrupt),
    "generator stopped for 30 s": Kind(stop("ray::Generator"), GENERATING, by_itself=True),
    "engine stopped for 30 s": Kind(stop("VLLM::EngineCore"), GENERATING, by_itself=True, env=ENGINE_APART),
    "worker stopped for 30 s": Kind(stop("ray::RayTrainWorker"), TRAINING, by_itself=True),
    "controller stopped for 30 s": Kind(stop("ray::TrainController"), TRAINING, by_itself=True),
    "board stopped for 30 s": Kind(stop("ray::Board"), TRAINING, by_itself=True),
    "raylet stopped for 30 s": Kind(stop("raylet/raylet"), by_itself=True),
    "driver stopped for 30 s": Kind(stop(""), by_itself=True),
    "file cut short": Kind(truncate),
    "bit flipped": Kind(flip),
    "storage full": Kind(fill, place="mount"),
    "storage read-only": Kind(forbid, place="mount"),
    "store silent for 15 s": Kind(silence(15), by_itself=True, place="store"),
    "store slow for 30 s": Kind(slow, by_itself=True, place="store"),
    "store cut off": Kind(cut_off, place="store"),
    "machine lost": Kind(lose_machine, place="store"),
    "controller killed on a cluster": Kind(kill("ray::TrainController"), TRAINING, by_itself=True, place="cluster"),
    "node lost": Kind(lose_node, TRAINING, by_itself=True, place="cluster"),
    "generator's node lost": Kind(lose_generators_node, GENERATING, by_itself=True, place="cluster"),
    "node unplugged": Kind(unplug("ray::RayTrainWorker"), TRAINING, by_itself=True, place="cluster"),
    "generator's node unplugged": Kind(unplug("ray::Generator"), GENERATING, by_itself=True, place="cluster"),
    "job supervisor killed": Kind(kill_supervisor, place="submitted"),
    "job supervisor stopped for 30 s": Kind(stop("JobSupervisor"), by_itself=True, place="submitted"),
}
