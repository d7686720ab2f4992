"""How often this process opened each weight file: a run says so, and a hand-off that reads a base again shows."""

from __future__ import annotations

import os
import sys
from collections import Counter
from threading import Lock
from typing import Any

import safetensors

_counts: Counter[str] = Counter()
_lock = Lock()
_original: Any = safetensors.safe_open


def opens() -> dict[str, int]:
    """Return {real path: times opened for reading} since :func:`install`."""
    with _lock:
        return dict(_counts)


def install() -> None:
    """Start counting, for modules that are loaded and those to come; a second call changes nothing."""
    if safetensors.safe_open is not _original:
        return
    sys.addaudithook(_audit)
    for module in list(sys.modules.values()):
        if module is not sys.modules[__name__]:
            for name in [name for name, value in list(vars(module).items()) if value is _original]:
                setattr(module, name, _counting)


def _counting(filename: Any, *args: Any, **kwargs: Any) -> Any:
    opened = _original(filename, *args, **kwargs)
    _count(filename)
    return opened


def _audit(event: str, args: tuple[Any, ...]) -> None:
    """Count what Python itself opens: some loaders read the bytes instead of mapping the file."""
    if event == "open" and str(args[0]).endswith(".safetensors") and "r" in (args[1] or ""):
        _count(args[0])


def _count(filename: Any) -> None:
    with _lock:
        _counts[os.path.realpath(filename)] += 1
