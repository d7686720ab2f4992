"""A policy by its name: a run, one of its policies, or any Hugging Face folder or hub id."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from rayrec.data.settings import DataConfig, DateOrder
from rayrec.models import card
from rayrec.report.rows import best_policy, last_policy
from rayrec.runs.manifest import read_json
from rayrec.runs.names import check_exists, is_run, like


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
    """How it is asked (:data:`rayrec.models.card.FILE`); None where no file has it."""

    def data(
        self,
        source: str = "auto",
        data: str | None = None,
        columns: tuple[str, ...] = (),
        date_order: DateOrder | None = None,
    ) -> tuple[DataConfig, int]:
        """Return which interactions its users have, by default those of its run, and how many titles of a prompt.

        Raises:
            ValueError: no data is named, and the policy is of no run.
        """
        own = self.settings.get("data", {})
        length = int(self.asked["history"]) if self.asked else 10
        given: dict[str, Any]
        if data is not None or source != "auto":
            given = {"source": source, "data": data, "columns": tuple(columns), "date_order": date_order}
            return DataConfig(**given, bad_rows="drop"), length
        if not own:
            raise ValueError(
                f"{self.name}: a policy outside of a run has no data. Name users by --data DIR or --histories FILE."
            )
        names = {one.name for one in fields(DataConfig)} & {*own}
        given = {name: tuple(v) if isinstance(v := own[name], list) else v for name in names}
        given["bad_rows"] = "drop"
        return DataConfig(**given), length


def find(policy: str) -> Place:
    """Return the place of ``policy``: of a run its best policy on validation rows, else its last one.

    Raises:
        ValueError: there is no such run or folder, the run has no finished policy, or its weights were removed.
    """
    path = Path(policy).expanduser()
    run = next((folder for folder in (path, *path.parents) if is_run(folder)), None)
    if run is None:
        check_exists(policy, path, hub=True)
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
    """How a run's policies are asked, where their folders lack the file."""
    found = {name: settings[group][name] for name, group in card.ASKED.items()}
    tiny = found["template"] == "auto" and settings["model"]["model"] == "tiny"
    return found | {
        "template": "compact" if tiny else found["template"],
        **{name: settings["model"].get(name) for name in ("item_vectors", "max_length", "max_new_tokens")},
    }


def _instead(run: Path) -> str:
    """Return what to name instead of a policy without weights: the run's policies that have some, or other runs."""
    kept = sorted({one.relative_to(run).parts[:2] for one in run.glob("*/*/policy/**/*.safetensors")})
    if kept:
        return f"Name one that is kept: {', '.join(str(run.joinpath(*parts)) for parts in kept)}."
    others = [name for name in like(run.parent, run.name) if name != run.name]
    return "Finish the run" + (f", or name another of {run.parent}: {', '.join(others)}." if others else ".")
