"""Finished phases that runs of one folder share: the tiny model's first training, and the oracle.

Ten methods on the same data start from the same policies; the first run makes them. An entry is a folder
``RUNS/.shared/HASH``, named after everything that decides its bytes, so taking it changes no number.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayrec.runs.manifest import damage, read_json, seal, sha256
from rayrec.runs.run import versions

if TYPE_CHECKING:
    pass


def take_or_make(
    root: Path, folder: Path, deciding: dict[str, Any], facts: dict[str, Any], make: Callable[[], dict]
) -> dict[str, Any]:
    """Fill a phase's ``folder`` in the run ``root`` from a sound entry, or with ``make()`` and keep that as entry.

    ``deciding`` is everything that decides the phase's bytes besides rayrec's sources and the versions of packages.
    Returns the phase's ``metrics.json``; ``facts`` are told of an entry that was taken. What was resumed, maybe by
    other workers than it began with, is no entry.
    """
    name = name_of(deciding)
    entry = root.parent / ".shared" / name
    if (entry / "DONE").exists() and not damage(entry):
        shutil.copytree(entry, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("DONE", "metrics.json"))
        facts["taken_from"] = str(entry)
        return read_json(entry / "metrics.json")
    metrics = make()
    if "resumed_at" in facts:
        return metrics
    entry.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=name, dir=entry.parent))
    shutil.copytree(folder, made, dirs_exist_ok=True)
    seal(made, name, metrics)
    if entry.exists() and damage(entry):
        shutil.rmtree(entry)
    try:
        made.rename(entry)
    except OSError:  # another run was faster, with the same bytes
        shutil.rmtree(made)
    return metrics


def name_of(deciding: dict[str, Any]) -> str:
    """Hash of what decides a phase's bytes, of rayrec's sources and of the versions of packages."""
    known = deciding | {"versions": versions(), "code": _code()}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def processor() -> str:
    """What of the CPU decides the order of its sums."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


@cache
def _code() -> str:
    """Hash of rayrec's own sources: whoever changes a loss gets it trained."""
    root = Path(__file__).parent
    return hashlib.sha256("".join(sha256(path) for path in sorted(root.rglob("*.py"))).encode()).hexdigest()
