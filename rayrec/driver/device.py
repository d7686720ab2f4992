"""The figures of devices that the cost model reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Device:
    """Speed and memory of a device, and the shares that are reached. GPUs have the data sheets' dense figures."""

    bfloat16: float
    """Operations per second."""
    float32: float
    bandwidth: float
    """Bytes per second between the device and its memory."""
    memory: float
    link: float
    """Bytes per second from one device to another of its node."""
    train: float = 0.6
    """Share of the operations that the matrix products of a training step reach."""
    generate: float = 0.4
    """Share of them that the pass of a prompt reaches."""
    step: float = 0.005
    """Further seconds per micro-batch."""
    launch: float = 1e-5
    """Seconds of the host for each kernel."""
    moves: float = 20.0
    """Times that a training pass moves each number of a layer between the device and its memory, without adapters."""
    adapted: float = 40.0
    """The same with adapters."""
    token: float = 0.01
    """Further seconds per token of the longest answer of a part."""
    phase: float = 5.0
    """Further seconds per phase."""
    start: float = 60.0
    """Seconds until the processes are up and have read the model."""
    cores: bool = False
    """Whether it is a core, of which a process takes as many as it has threads."""


#: Bytes per second that a node sends to others: 400 Gbit/s.
NETWORK = 50e9
#: Kernels that one layer launches in a training pass forward and back, of a whole model and with adapters and dropout;
#: counted on a CPU, but for its two norms (rayrec/models/norms.py): each is taken for one forward and four back.
KERNELS = 86, 141
#: One core of an AMD EPYC with AVX-512, fitted to two runs, `fitted` and `model` of jobs/benches/estimate.py, which
#: checks it on others; launches and moves are in these figures.
_CPU: dict[str, Any] = {"step": 0.018, "token": 0.003, "phase": 1.3, "start": 24.0, "cores": True}
_CPU |= {"launch": 0.0, "moves": 0.0, "adapted": 0.0}
#: Shares, steps, moves and phases of GPUs are assumptions.
DEVICES = {
    "H100": Device(989e12, 67e12, 3.35e12, 80e9, 450e9),
    "H200": Device(989e12, 67e12, 4.8e12, 141e9, 450e9),
    "A100": Device(312e12, 19.5e12, 2.04e12, 80e9, 300e9),
    "L40S": Device(362e12, 91.6e12, 0.864e12, 48e9, 32e9),
    "cpu": Device(260e9, 260e9, 10e9, 12e9, 5e9, 1.0, 1.0, **_CPU),
}


def parse(cluster: str) -> tuple[int, int, str]:
    """Return nodes, devices of a node and their kind of ``8x8xH100``.

    Raises:
        ValueError: another form, or a kind without figures.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x(\w+)", cluster)
    kinds = {name.lower(): name for name in DEVICES}
    if not found or found[3].lower() not in kinds or not int(found[1]) or not int(found[2]):
        raise ValueError(
            f"--cluster {cluster}: wanted NODESxDEVICESxKIND, such as 8x8xH100, with a kind of {', '.join(DEVICES)}."
        )
    return int(found[1]), int(found[2]), kinds[found[3].lower()]
