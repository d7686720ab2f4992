"""The counter of weight files says what the kernel says."""

import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

import safetensors
from safetensors.torch import load, save_file

from rayrec.config import ModelConfig
from rayrec.models import opens, policy
from rayrec.models.tiny import make_tiny

IN_OPEN, IN_NONBLOCK = 0x20, os.O_NONBLOCK


def kernel_opens(file: Path, action: Callable[[], object]) -> int:
    """Return how often ``file`` was opened, by inotify, while ``action`` ran."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(IN_NONBLOCK)
    assert watch >= 0 and libc.inotify_add_watch(watch, os.fsencode(file.parent), IN_OPEN) >= 0
    try:
        action()
        events, count = os.read(watch, 2**16), 0
    except BlockingIOError:
        return 0
    finally:
        os.close(watch)
    while events:
        _, _, _, size = struct.unpack_from("iIII", events)
        count += events[16 : 16 + size].rstrip(b"\0") == file.name.encode()
        events = events[16 + size :]
    return count


def test_counts_are_the_kernels(tmp_path: Path) -> None:
    original = safetensors.safe_open
    make_tiny(["Heat (1995)"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=280), tmp_path, 0)
    file = tmp_path / "model.safetensors"
    # One safe_open may open the file more than once (to read its head, and to map it).
    unit = kernel_opens(file, lambda: original(str(file), framework="pt"))
    assert unit > 0
    opens.install()
    opens.install()
    model = policy.load_base(tmp_path)

    def counted() -> int:
        return opens.opens().get(str(file.resolve()), 0)

    for action, times in (
        (lambda: policy.load_base(tmp_path), None),
        (lambda: [policy.load_weights(model, tmp_path) for _ in range(3)], 3),
        (lambda: save_file({"x": model.lm_head.weight.detach()}, file), 0),
    ):
        start = counted()
        kernel = kernel_opens(file, action)
        assert (counted() - start) * unit == (0 if times == 0 else kernel)
        assert times is None or counted() - start == times
    assert counted() > 0
    start = counted()
    assert kernel_opens(file, lambda: load(file.read_bytes())) == counted() - start == 1
