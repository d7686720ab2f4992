"""A policy by its name: a run, one of its policies, or any Hugging Face folder or hub id."""

from __future__ import annotations

import difflib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from rayrec.data.settings import DataConfig
from rayrec.models import card
from rayrec.report.rows import best_policy, last_policy
from rayrec.runs.manifest import read_json


class Place(NamedTuple):
    """Where a policy lies, and how it was asked in its run."""

    name: str
    """Such as ``NAME/01/prefer``."""
    model: str
    """Folder or hub id of the whole model, or of its adapter where no merged weights are there."""
    run: Path | None
    settings: dict[str, dict[str, Any]]
    """The run's configuration by groups; empty outside of a run."""
    asked: dict[str, Any] | None
    """How it is asked (:data:`rayrec.models.card.FILE`); None where nothing tells."""

    def data(
        self, source: str = "auto", data: str | None = None, columns: tuple[str, ...] = ()
    ) -> tuple[DataConfig, int]:
        """Return which interactions its users have, by default those of its run, and how many titles of a prompt.

        Raises:
            ValueError: no data is named, and the policy is of no run.
        """
        own = self.settings.get("data", {})
        length = int(self.asked["history"]) if self.asked else 10
        if data is not None or source != "auto":
            return DataConfig(source=source, data=data, columns=tuple(columns), bad_rows="drop"), length
        if not own:
            raise ValueError(
                f"{self.name}: a policy outside of a run has no data. Name users by --data DIR or --histories FILE."
            )
        names = {one.name for one in fields(DataConfig)} & {*own}
        given: dict[str, Any] = {name: tuple(v) if isinstance(v := own[name], list) else v for name in names}
        given["bad_rows"] = "drop"
        return DataConfig(**given), length


def find(policy: str) -> Place:
    """Return the place of ``policy``: of a run its best policy on validation rows, else its last one.

    Raises:
        ValueError: there is no such run or folder, the run has no finished policy, or its weights were removed.
    """
    path = Path(policy).expanduser()
    run = next((folder for folder in (path, *path.parents) if _is_run(folder)), None)
    if run is None:
        _check_exists(policy, path)
        return Place(policy, policy, None, {}, card.asked(policy))
    if run == path:
        metrics = run / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
        best = best_policy(rows)
        phase = best[0] if best else last_policy(rows)
        if phase is None:
            raise ValueError(f"{policy}: no policy of this run was evaluated yet. {_instead(run)}")
        path = run / phase
    folder = path if path.name in ("policy", "merged") else path / "policy"
    whole = folder / "merged" if (folder / "merged").is_dir() else folder
    name = folder.relative_to(run).as_posix().removesuffix("/merged").removesuffix("/policy")
    if not list(whole.glob("*.safetensors")):
        raise ValueError(
            f"{folder}: no weights are there; a run keeps those of its last policies alone, or all with --keep all. "
            f"{_instead(run)}"
        )
    settings = read_json(run / "config.json")["config"]
    asked = card.asked(whole) or _of_settings(settings)
    return Place(f"{run.resolve().name}/{name}", str(whole), run, settings, asked)


def _of_settings(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How a run's policies are asked, where their folders do not say so."""
    found = {name: settings[group][name] for name, group in card.ASKED.items()}
    tiny = found["template"] == "auto" and settings["model"]["model"] == "tiny"
    return found | {
        "template": "compact" if tiny else found["template"],
        "item_vectors": settings["model"]["item_vectors"],
    }


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and "config" in read_json(folder / "config.json")


def _check_exists(policy: str, path: Path) -> None:
    """Refuse the path of a run or folder that does not exist. ``OWNER/NAME`` is a hub id where OWNER holds no run.

    Raises:
        ValueError: with the runs that are there, those of a similar name first.
    """
    if path.exists() or "://" in policy:
        return
    if len(path.parts) == 1 and _is_run(Path("runs", policy)):
        raise ValueError(f"{policy}: no such folder here, but a run in runs. Take runs/{policy}.")
    parent = next(folder for folder in path.parents if folder.is_dir() or folder == folder.parent)
    is_path = len(path.parts) > 2 or policy.startswith((".", "~", "/"))  # which no hub id is
    runs = _runs(parent, path.parts[len(parent.parts)]) if is_path or parent != Path() else []
    if runs:
        raise ValueError(f"{policy}: there is no such run. In {parent} are {', '.join(runs)}. Name one of them.")
    if is_path:
        raise ValueError(f"{policy}: there is no such run or folder. Name one that exists, or a hub id OWNER/NAME.")


def _runs(folder: Path, name: str) -> list[str]:
    """Return the names of the runs in a folder, at most eight, those most like ``name`` first."""
    found = sorted(one.name for one in folder.iterdir() if _is_run(one))
    return difflib.get_close_matches(name, found, 8, cutoff=0.0) if found else []


def _instead(run: Path) -> str:
    """Return what to name instead of a policy without weights: the run's policies that have some, or other runs."""
    kept = sorted({one.relative_to(run).parts[:2] for one in run.glob("*/*/policy/**/*.safetensors")})
    if kept:
        return f"Name one that is kept: {', '.join(str(run.joinpath(*parts)) for parts in kept)}."
    others = [name for name in _runs(run.parent, run.name) if name != run.name]
    return "Finish the run" + (f", or name another of {run.parent}: {', '.join(others)}." if others else ".")
