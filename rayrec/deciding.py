"""The settings that decide the numbers of a run: their hash, the differences of two runs, and reading config.json."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayrec.config import AnyConfig, Config, OutputConfig
from rayrec.fields import flag

#: Deciding settings by which a finished run can be extended, with the reason.
EXTENDING = {
    "train.iterations": "more iterations are more phases; those that are there do not read it",
    "evaluate.top_k": "lists of other lengths are made from the answers that are there",
}

#: Settings that decide no number of a run, with the reason; whole groups by their name.
NOT_DECIDING = {
    "placement": "where a run is computed",
    "output": "what is kept, and where",
    "json": "a file that results are copied to",
    "train.allow_random_negatives": "whether a run goes on, not what it computes",
    "data.data": "a path; its contents are hashed",
    "evaluate.embedder_path": "a path; its contents are hashed",
    "sequential.embedder_path": "a path; its contents are hashed",
    "sequential.models": "more models in a folder change no number of those that are there",
}


def to_dict(config: AnyConfig) -> dict[str, dict[str, Any]]:
    """The resolved configuration as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def deciding(config: AnyConfig | dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every setting as ``group.name``, less those of :data:`NOT_DECIDING`; takes a configuration or its dict."""
    groups = config if isinstance(config, dict) else to_dict(config)
    settings = {f"{g}.{k}": v for g, group in groups.items() if g not in NOT_DECIDING for k, v in group.items()}
    return {name: value for name, value in settings.items() if name not in NOT_DECIDING}


def fixed(config: AnyConfig | dict[str, dict[str, Any]]) -> dict[str, Any]:
    """:func:`deciding` without what a run can be extended by (:data:`EXTENDING`).

    Where D3 tunes its weight, on lists of the longest length, the lengths stay.
    """
    settings = deciding(config)
    tuned = "d3" in settings.get("evaluate.decode", ()) and settings["evaluate.d3_alpha"] is None
    return {name: v for name, v in settings.items() if name not in EXTENDING or (tuned and name == "evaluate.top_k")}


def read_config(path: str | Path) -> Config:
    """Return the settings of a run by its ``config.json``, or by its folder.

    Raises:
        ValueError: there is no such file, or it is not of a run of rayrec sprec at this revision.
    """
    file = Path(path).expanduser()
    file = file / "config.json" if file.is_dir() else file
    remedy = "Name the config.json of a run of rayrec sprec."
    try:
        groups = json.loads(file.read_text("utf-8"))["config"]
        parts = {part.name: type(part.default_factory()) for part in dataclasses.fields(Config)}  # pyright: ignore
        if groups.keys() != parts.keys():
            raise ValueError(f"found the groups {sorted(groups)}, wanted {sorted(parts)}")
        made = {}
        for name, kind in parts.items():
            if unknown := groups[name].keys() - {one.name for one in dataclasses.fields(kind)}:
                raise ValueError(f"{', '.join(map(flag, sorted(unknown)))} are settings of another revision")
            values = {one: tuple(value) if isinstance(value, list) else value for one, value in groups[name].items()}
            made[name] = kind(**values)
    except OSError as error:
        raise ValueError(f"--config {path}: cannot be read ({error.strerror}). {remedy}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--config {path}: {error}. {remedy}") from error
    once = OutputConfig()
    output = dataclasses.replace(made["output"], dry_run=once.dry_run, on_existing=once.on_existing)
    return Config(**made | {"output": output})


def result_hash(config: AnyConfig, hashes: Mapping[str, str]) -> str:
    """Hash of the settings that decide numbers, and of ``hashes`` of contents that they name."""
    text = json.dumps([fixed(config), dict(hashes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def changed(config: AnyConfig) -> list[dict[str, str]]:
    """Flag, value and default of each deciding setting that preset, method or command changed."""
    default = deciding(type(config)())
    found = {name: value for name, value in deciding(config).items() if value != default[name]}

    def shown(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)

    return [
        {"setting": flag(name.partition(".")[2]), "here": shown(value), "default": shown(default[name])}
        for name, value in found.items()
    ]


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Lines that name each deciding setting in which two ``config.json`` records differ."""
    old, new = fixed(found["config"]), fixed(wanted["config"])
    lines = []
    for name in sorted(old | new):
        if old.get(name) != new.get(name):
            lines.append(f"{flag(name.partition('.')[2])}: there {old.get(name)!r}, here {new.get(name)!r}")
    for name in ("data", "model", "embedder"):
        there, here = (record.get(f"{name}_hash", "")[:12] for record in (found, wanted))
        if there != here:
            lines.append(f"{name}: there {there or 'none'}, here {here or 'none'} (content hash)")
    return lines or ["what rayrec itself reads, at another revision"]
