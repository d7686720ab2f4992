"""The CPUs, GPUs and network interfaces of the machine that this process is on."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil

#: The oldest driver of a CUDA version, by their major numbers (NVIDIA's table of minor version compatibility).
DRIVERS = {11: 450, 12: 525, 13: 580}
#: The CPU time of a container and the time in which it may take it.
_QUOTA = "sys/fs/cgroup/cpu.max"
#: The kernel's file about NVIDIA's driver, and a folder with an entry for each of its GPUs.
_VERSION, _GPUS = "proc/driver/nvidia/version", "proc/driver/nvidia/gpus"


def cores(root: Path = Path("/")) -> int:
    """Return the CPUs that this process may use: of the machine, of its affinity, and of its container's quota."""
    found = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        found.append(len(os.sched_getaffinity(0)))
    try:
        quota, period = (root / _QUOTA).read_text().split()
        found.append(max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or `max`
        pass
    return min(found)


def unusable(root: Path = Path("/")) -> str:
    """Return why torch cannot compute on GPUs that this machine has, with the remedy; empty if it can, or has none."""
    import torch

    try:
        cards, text = len(list((root / _GPUS).iterdir())), (root / _VERSION).read_text()
    except OSError:
        return ""
    if torch.cuda.is_available() or not cards:
        return ""
    has = f"this machine has {cards} GPU{'s' * (cards > 1)}"
    if torch.version.cuda is None:
        return f"{has}, and torch {torch.__version__} computes on CPUs alone. Install rayrec[gpu]: docs/cluster.md"
    match = re.search(r"Kernel Module\b.*?\s(\d+)[.\d]*", text)
    found, wanted = int(match[1]) if match else 0, DRIVERS.get(int(torch.version.cuda.split(".")[0]), 0)
    if found < wanted:
        return (
            f"{has} with driver {found or 'unknown'}, and torch {torch.__version__} of CUDA {torch.version.cuda} wants "
            f"driver {wanted} or newer. Update the driver"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"{has}, and CUDA_VISIBLE_DEVICES={hidden!r} shows none of them. Unset it"
    return f"{has} with driver {found}, which torch {torch.__version__} cannot use. Run nvidia-smi, which says why"


def check_gpu() -> None:
    """Raise ValueError in a process that has a GPU and cannot compute on it."""
    import torch

    if not torch.cuda.is_available():
        node, why = os.uname().nodename, unusable() or "torch finds no CUDA device. Run nvidia-smi there"
        raise ValueError(f"{node}: {why}, or take --device cpu.")


def choose_interface() -> None:
    """Let gloo talk over the interface that has this node's address in Ray, unless GLOO_SOCKET_IFNAME is set.

    By itself it takes the one of the host's name, which Debian and Ubuntu give an address of the loopback.
    """
    import ray

    address = ray.util.get_node_ip_address()
    for name, places in psutil.net_if_addrs().items():
        if any(place.address == address for place in places):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
