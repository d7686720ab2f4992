"""Results that are made once: sealed folders with a key, the hash of everything that decides their bytes.

A key holds whole groups of settings less a short list of those that cannot matter, hashes of all inputs, rayrec's
sources and package versions: a forgotten setting costs another computation and never shares results.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from rayrec.runs.manifest import CHECKPOINT, damage, read_json, seal, sha256
from rayrec.runs.run import versions
from rayrec.runs.storage import Storage

#: Folder of the entries that all runs of one folder share.
SHARED = ".shared"


def key_hash(key: Mapping[str, Any]) -> str:
    """Hash of a key, rayrec's sources and the package versions, 32 hexadecimal digits."""
    text = json.dumps({**key, "versions": versions(), "sources": _sources_hash()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def processor() -> str:
    """The vector instructions that torch uses: they decide the order of sums on a CPU."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


@cache
def _sources_hash() -> str:
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256("".join(map(sha256, sources)).encode()).hexdigest()


def make_once(where: Path, key: Mapping[str, Any], make: Callable[[Path], dict]) -> Path:
    """Return the entry ``where/HASH`` of ``key``; ``make(folder)`` fills a missing or damaged one and returns its
    ``metrics.json``."""
    entry = where / key_hash(key)
    if damage(entry):
        where.mkdir(parents=True, exist_ok=True)
        made = where / f"{entry.name}.{uuid.uuid4().hex[:8]}"  # no mkdtemp, which only its owner may read
        made.mkdir()
        try:
            seal(made, entry.name, make(made))
            if entry.exists() and damage(entry):
                shutil.rmtree(entry)
            made.rename(entry)
        except OSError:  # a run beside this one may have made the same bytes
            if damage(entry):
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return entry


def find(where: Path, key: Mapping[str, Any]) -> dict | None:
    """The ``metrics.json`` of a sound entry of ``key``; None without one."""
    entry = where / key_hash(key)
    return None if damage(entry) else read_json(entry / "metrics.json")


def share_phase(
    root: Path, folder: Path, key: Mapping[str, Any], facts: dict[str, Any], make: Callable[[], dict]
) -> dict:
    """Fill a phase's ``folder`` in the run ``root`` from the shared entry of ``key``, or by ``make()``.

    Returns the phase's metrics; ``facts`` names the entry that was taken. A resumed phase is not shared: other workers
    than the key has may have begun it.
    """
    where = root.parent / SHARED
    if (shared := find(where, key)) is not None:
        entry = where / key_hash(key)
        shutil.copytree(entry, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("DONE", "metrics.json"))
        facts["taken_from"] = str(entry)
        return shared
    metrics = make()

    def copy(made: Path) -> dict:
        shutil.copytree(folder, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKPOINT))
        return metrics

    if "resumed_at" not in facts:
        make_once(where, key, copy)
    return metrics


def write_entry(entry: Path, key: str, write: Callable[[Path], None], storage: Storage) -> None:
    """Let ``write(entry)`` fill a folder of a run, seal it under a key's hash and upload it."""
    shutil.rmtree(entry, ignore_errors=True)
    entry.mkdir(parents=True)
    write(entry)
    seal(entry, entry.parent.name, {"key": key})
    storage.upload(entry)


def entries(folder: Path, key: str, storage: Storage) -> Iterator[Path]:
    """The entries of a key in a folder of a run, downloaded; damaged ones are left out."""
    for entry in storage.finished_in(folder):
        storage.download_sound(entry)
        if not damage(entry) and read_json(entry / "metrics.json")["key"] == key:
            yield entry
