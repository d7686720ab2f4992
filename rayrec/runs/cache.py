"""Finished phases that runs of one folder share: the tiny model's first training, and the oracle.

Ten methods on the same data start from the same policies; the first run makes them. An entry is a folder
``RUNS/.shared/HASH``, named after everything that decides its bytes, so taking it changes no number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayrec.config import Config
from rayrec.runs.manifest import damage, read_json, seal, sha256
from rayrec.runs.run import versions

if TYPE_CHECKING:
    from rayrec.training.board import Phase

#: Settings besides the phase's own that a training worker reads.
_MODEL = ("lora_rank", "lora_alpha", "max_length", "template")
_DATA = ("protocol", "ask", "ratings")  # what prompts are made of, besides the rows
_TRAIN = ("micro_batch", "row_tokens", "attention", "activation_checkpointing")
_TRAIN += ("schedule", "weight_decay", "clip", "dtype", "zero_stage")


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


def of_training(phase: Phase, config: Config, gpu: bool) -> dict[str, Any]:
    """What decides the bytes of a training phase."""
    return {
        "phase": dataclasses.asdict(dataclasses.replace(phase, rows="", start="", out="", items="", key="")),
        "rows": sha256(Path(phase.rows)),
        "start": _hashes(Path(phase.start)) or phase.start,
        "items": _hashes(Path(phase.items)) if phase.items else {},
        "model": {name: getattr(config.model, name) for name in _MODEL},
        "train": {name: getattr(config.train, name) for name in _TRAIN},
        "prompts": {name: getattr(config.data, name) for name in _DATA},
        "workers": config.worker_counts,
        "seed": config.data.seed,
        "processor": processor(),
        "gpu": gpu,
    }


def processor() -> list[Any]:
    """What of the CPU decides the order of its sums."""
    import torch

    from rayrec.models import products

    return [torch.backends.cpu.get_cpu_capability(), products.wanted()]


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of a folder's files by name; empty for a hub id."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: sha256(path) for path in files if path.is_file()}


@cache
def _code() -> str:
    """Hash of rayrec's own sources: whoever changes a loss gets it trained."""
    root = Path(__file__).parent
    return hashlib.sha256("".join(sha256(path) for path in sorted(root.rglob("*.py"))).encode()).hexdigest()
