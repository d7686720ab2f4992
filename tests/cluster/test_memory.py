"""Errors of a process that found no memory, from whom and in whatever wrapping, and errors that are none of them."""

from __future__ import annotations

from pathlib import Path

import torch
from ray.exceptions import OutOfMemoryError, RayTaskError

from rayrec.cluster import memory

#: Of Ray 2.60, shortened in the middle.
RAY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 53d6cc2b) "
    "was 22.41GB used / 23.54GB limit (0.952), which exceeds the memory usage threshold of 0.950\nSelected to kill: "
    "(Actor(a1b780ff): job ID=01000000, task name=RayTrainWorker.execute, pid=528, actual memory used=13.90GB, worker "
    "ID=924ee633)\nTop 10 memory users: PID\tMEM(GB)\tCOMMAND"
)
LINE = "its node 192.0.2.2 had 22.41GB of 23.54GB in use, 13.90GB of it the process's own"


def error_of(work) -> BaseException:
    try:
        work()
    except BaseException as error:
        return error
    raise AssertionError("there was memory")


def test_rays_monitor_names_the_node_and_what_was_used() -> None:
    assert memory.out_of_memory(OutOfMemoryError(RAY)) == LINE
    assert memory.out_of_memory(RuntimeError(f"Worker 0: {RAY}")) == LINE  # as Ray Train passes it on


def test_errors_of_allocators_here_and_in_other_processes() -> None:
    here = error_of(lambda: torch.empty(1 << 50))
    assert "allocate 4503599627370496 bytes" in memory.out_of_memory(here)
    there = RayTaskError("answer", "Traceback ...", here).as_instanceof_cause()
    assert memory.out_of_memory(there) == memory.out_of_memory(here)
    assert memory.out_of_memory(error_of(lambda: bytearray(1 << 60))) == "MemoryError"
    assert memory.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")).startswith(
        "CUDA"
    )


def test_other_errors_have_nothing_to_do_with_memory() -> None:
    for other in (
        RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [192.0.2.2]:44563"),
        ValueError("--max-length 9: out of memory is no reason"),
        KeyError("a"),
    ):
        assert memory.out_of_memory(other) == ""


def test_the_kernels_count_of_a_machine_and_of_a_container(tmp_path: Path) -> None:
    assert memory.kernel_kills(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "vmstat").write_text("nr_free_pages 12\noom_kill 3\n")
    assert memory.kernel_kills(tmp_path) == 3
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.events").write_text("oom 9\noom_kill 5\noom_group_kill 0\n")
    assert memory.kernel_kills(tmp_path) == 5
    assert memory.KernelKills().look() == ""
