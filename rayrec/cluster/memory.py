"""Processes that ran out of memory: how that is recognised, and the line that a person reads."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import psutil

#: Phrases of torch's allocators, on CPUs and GPUs.
_TORCH = re.compile(r"out of memory|can't allocate memory|not enough memory|failed to allocate|alloc_failed", re.I)
#: Of Ray's message: the node, how much of its memory was in use, and how much the process that was ended had.
_NODE, _OWN = re.compile(r"\(IP: ([^,)]+)"), re.compile(r"actual memory used=([\d.]+ ?[KMGT]?i?B)")
_USED = re.compile(r"([\d.]+ ?[KMGT]i?B)(?: used)? / ([\d.]+ ?[KMGT]i?B)")
#: Counters of processes that the kernel has ended for memory, of the machine and of this container.
_COUNTERS = ("proc/vmstat", "sys/fs/cgroup/memory.events")


def out_of_memory(error: BaseException) -> str:
    """Return in one line that an error means no memory, from this process, another one or Ray; empty if it does not."""
    causes, one = [error], error
    while (one := getattr(one, "cause", None) or one.__cause__) is not None and one not in causes:
        causes.append(one)
    for one in causes:
        kind, text = type(one).__name__, str(one).strip()
        if "running low on memory" in text:
            node, used, own = _NODE.search(text), _USED.search(text), _OWN.search(text)
            where = f"its node {node[1]}" if node else "its node"
            line = f"{where} had {used[1]} of {used[2]} in use" if used else f"{where} ran low on memory"
            return line + (f", {own[1]} of it the process's own" if own else "")
        if (
            isinstance(one, MemoryError)
            or kind == "OutOfMemoryError"
            or (kind == "RuntimeError" and _TORCH.search(text))
        ):
            lines = [line for line in text.splitlines() if _TORCH.search(line)] or [kind]
            return lines[-1].strip().removeprefix("RuntimeError: ")
    return ""


def held() -> int:
    """The bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most bytes of memory that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def gigabytes(count: float) -> str:
    """A count of bytes in GB."""
    return f"{count / 1e9:.1f} GB"


def machine() -> str:
    """How much memory of this machine is in use."""
    found = psutil.virtual_memory()
    return f"{gigabytes(found.total - found.available)} of the machine's {gigabytes(found.total)} in use"


def kernel_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel of this machine has ended for memory."""
    counts = [0]
    for name in _COUNTERS:
        try:
            lines = (root / name).read_text().splitlines()
        except OSError:
            continue
        counts += [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return max(counts)


class KernelKills:
    """Whether the kernel has ended a process of this machine for memory since the last look."""

    def __init__(self) -> None:
        self._seen = kernel_kills()

    def look(self) -> str:
        """The line that says so; empty if it has not."""
        before, self._seen = self._seen, kernel_kills()
        return f"the kernel ended a process for memory on {os.uname().nodename}" if self._seen > before else ""
