"""The runs of a folder, for a command that names one that is not there."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

from rayrec.runs.manifest import read_json


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run."""
    return (folder / "config.json").is_file() and "config" in read_json(folder / "config.json")


def like(folder: Path, name: str) -> list[str]:
    """Return the names of the runs in a folder, at most eight, those most like ``name`` first."""
    found = list[str]()
    for one in folder.iterdir():
        with contextlib.suppress(OSError, ValueError):  # of a folder that nobody named
            found += [one.name] if is_run(one) else []
    return difflib.get_close_matches(name, sorted(found), 8, cutoff=0.0)


def check_exists(named: str, path: Path, hub: bool = False) -> None:
    """Refuse the path of a run or folder that does not exist.

    With ``hub`` it may be a hub id instead: ``OWNER/NAME`` is one where OWNER holds no run.

    Raises:
        ValueError: with the runs that are there, those of a similar name first.
    """
    if path.exists() or "://" in named:
        return
    if len(path.parts) == 1 and is_run(Path("runs", named)):
        raise ValueError(f"{named}: no such folder here, but a run in runs. Take runs/{named}.")
    parent = next(folder for folder in path.parents if folder.is_dir() or folder == folder.parent)
    is_path = not hub or len(path.parts) > 2 or named.startswith((".", "~", "/"))  # which no hub id is
    runs = like(parent, path.parts[len(parent.parts)]) if is_path or parent != Path() else []
    if runs:
        raise ValueError(f"{named}: there is no such run. In {parent} are {', '.join(runs)}. Name one of them.")
    if is_path:
        other = ", or a hub id OWNER/NAME" if hub else ""
        raise ValueError(f"{named}: there is no such run or folder. Name one that exists{other}.")


def check_run(folder: Path) -> None:
    """Refuse a folder that is not there, or that holds runs and is none.

    Raises:
        ValueError: with the runs that are there.
    """
    check_exists(str(folder), folder)
    if folder.is_dir() and not (folder / "config.json").exists() and (runs := like(folder, folder.name)):
        raise ValueError(f"{folder}: it holds runs and is none. Name one of them: {', '.join(runs)}.")
