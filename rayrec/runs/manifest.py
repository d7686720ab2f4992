"""Finished folders: files, and then ``DONE``, a manifest of their names, sizes and sha256, written last."""

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

#: Name of the manifest.
MANIFEST = "DONE"
#: Name of a phase's results: ``records``, and of a training ``steps`` and ``proof``, its trainer's statement.
METRICS = "metrics.json"
#: Folder of an unfinished phase's checkpoints and kept parts.
CHECKPOINT = "checkpoint"


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """:func:`write_text` of ``value`` as JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, remedy: str = "Remove it and run the same command again.", kind: type = dict) -> Any:
    """Read a JSON value of a kind; ValueError if it is missing or another one, with the ``remedy`` at its end."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file. Is {path.parent} a run folder?") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path}: not readable as JSON ({error}). {remedy}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: found a {type(value).__name__}, wanted a JSON {kind.__name__}. {remedy}")
    return value


def empty(folder: Path, but: str) -> None:
    """Remove all entries of a folder except ``but``."""
    for entry in folder.iterdir():
        if entry.name != but:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_manifest(text: bytes) -> dict[str, Any]:
    """A manifest: ``phase``, ``files`` (``name``, ``size``, ``sha256``), ``pruned`` names; ValueError for others."""
    try:
        found = json.loads(text)
        names = [PurePosixPath(entry["name"]) for entry in found["files"] if entry["sha256"] and entry["size"] >= 0]
        if any(name.is_absolute() or ".." in name.parts or not name.parts for name in names):
            raise ValueError("a manifest that names what is not in its folder")
        if not isinstance(found["pruned"], list) or not {*found["pruned"]} <= {e["name"] for e in found["files"]}:
            raise ValueError("a manifest that prunes what it does not name")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"a manifest that cannot be read: {error!r}") from error
    return found


def seal(folder: Path, phase: str, metrics: dict) -> None:
    """Write ``metrics.json`` and then the manifest."""
    write_json(folder / METRICS, metrics)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST]
    entries = [{"name": str(p.relative_to(folder)), "size": p.stat().st_size, "sha256": sha256(p)} for p in files]
    write_json(folder / MANIFEST, {"phase": phase, "files": entries, "pruned": []})


def damage(folder: Path) -> str:
    """The first difference between a folder and its manifest; empty if the folder is finished and sound."""
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes())
        for entry in manifest["files"]:
            path = folder / entry["name"]
            if entry["name"] in manifest["pruned"] and not path.exists():
                continue
            if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
                return f"{entry['name']} is damaged"
    except (ValueError, OSError) as error:
        return str(error)
    return ""
