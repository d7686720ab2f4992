"""A policy by its name: a run, one of its policies, or any Hugging Face folder or hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

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


def find(policy: str) -> Place:
    """Return the place of ``policy``: of a run its best policy on validation rows, else its last one.

    Raises:
        ValueError: the run has no finished policy, or its weights were removed.
    """
    path = Path(policy).expanduser()
    run = next((folder for folder in (path, *path.parents) if _is_run(folder)), None)
    if run is None:
        return Place(policy, policy, None, {}, card.asked(policy))
    if run == path:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        best = best_policy(rows)
        phase = best[0] if best else last_policy(rows)
        if phase is None:
            raise ValueError(
                f"{policy}: no policy of this run was evaluated yet. Finish it, or name a policy's folder."
            )
        path = run / phase
    folder = path if path.name in ("policy", "merged") else path / "policy"
    whole = folder / "merged" if (folder / "merged").is_dir() else folder
    name = folder.relative_to(run).as_posix().removesuffix("/merged").removesuffix("/policy")
    if not list(whole.glob("*.safetensors")):
        raise ValueError(
            f"{folder}: no weights are there; a run keeps those of its last policies alone. Name one that is kept, or "
            "run again with --keep all."
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
    if not (folder / "metrics.jsonl").is_file() or not (folder / "config.json").is_file():
        return False
    return "config" in read_json(folder / "config.json")
