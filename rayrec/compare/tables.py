"""Rows of a comparison: a method, the settings in which it differs from the others, and those that are tuned for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayrec.config import Config
from rayrec.methods import BASELINES, METHODS
from rayrec.runs.manifest import read_json

#: The metric on validation rows by which a setting is chosen.
CHOOSE = "NDCG"


Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """A row of the table: ``method`` with the settings that are its own, varied or tuned, each a flag and its value."""

    method: str
    own: Settings = ()
    tuned: Settings = ()
    #: What was tried, and its value on validation rows.
    validation: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        """Its name in tables."""
        return " ".join([self.method, *(f"{flag}={value}" for flag, value in self.own)])

    @property
    def folder(self) -> str:
        """Its name in folders, without the seed; of a path with ``_`` for each slash."""
        return " ".join([self.label, *(f"{flag}={value}" for flag, value in self.tuned)]).replace("/", "_")

    @property
    def flags(self) -> list[str]:
        """Its settings on the command line of a cell."""
        found: list[str] = []
        for flag, value in (*self.tuned, *self.own):
            if flag == "random-share":  # SPRec figure 5
                share = float(value)
                found += ["--negatives", *([f"self_play:{1 - share:.12g}"] if share < 1 else [])]
                found += [f"random:{value}"] if share else []
            else:
                found += [f"--{flag}", value]
        return found


def row_of(words: str) -> Row:
    """``METHOD`` or ``METHOD:flag=value,flag=value`` as a row.

    Raises:
        ValueError: no such method, or a setting without a value.
    """
    method, colon, settings = words.partition(":")
    known = [*METHODS, *BASELINES]
    if method not in known:
        raise ValueError(f"--methods {words}: no method is named {method!r}. Take some of {', '.join(known)}.")
    pairs = [pair.partition("=") for pair in settings.split(",")] if colon else []
    own = tuple((flag, value) for flag, _, value in pairs)
    if any(not flag or not value for flag, value in own):
        raise ValueError(f"--methods {words}: wanted METHOD:flag=value,flag=value, such as SPRec:sft-loss=msl.")
    if own and method in BASELINES:
        raise ValueError(f"--methods {words}: {method} has no settings of its own here. Name it alone.")
    return Row(method, own)


def numbers(flag: str, values: Sequence[str], least: int = 1) -> None:
    """Raise ValueError unless ``values`` are at least ``least`` different numbers."""
    given = " ".join([flag, *values])
    try:
        found = {float(value) for value in values}
    except ValueError:
        raise ValueError(f"{given}: wanted numbers, such as {flag} 0.1 1.") from None
    if len(values) < least or len(found) < len(values):
        raise ValueError(f"{given}: wanted at least {'one value' if least == 1 else f'{least} values'}, each once.")


def vary(rows: Sequence[Row], words: Sequence[str], against: str) -> list[Row]:
    """The rows, those of language models but ``against`` once for each value of a setting; ``words``: it and these."""
    if not words:
        return list(rows)
    setting, *values = words
    numbers(f"--vary {setting}", values)
    made: list[Row] = []
    for row in rows:
        several = row.method not in BASELINES and row.label != against
        made += [replace(row, own=(*row.own, (setting, value))) for value in values] if several else [row]
    return made


def tried(row: Row, config: Config, tune: Sequence[Sequence[str]], shared: Settings = ()) -> list[Row]:
    """The row once for each value that is tried for it, of the first setting of ``tune`` that is its own.

    ``first-…`` is a setting of methods that have the first SFT alone, and any other one of those with iterations, whose
    first SFT is ``shared``. Nothing is tuned for a baseline, which stops early by validation rows.
    """
    if row.method in BASELINES:
        return [row]
    alone = config.train.iterations == 0
    kept = () if alone else shared
    for setting, *values in tune:
        if setting.startswith("first-") == alone:
            return [replace(row, tuned=(*kept, (setting, value))) for value in values]
    return [replace(row, tuned=kept)]


def on_validation(folder: Path, decode: str, k: int) -> float:
    """NDCG@k on the validation rows of a run's last evaluation; ValueError: it has none by this decoder."""
    phases = sorted((path.parent for path in folder.glob("*/evaluate/DONE")), key=lambda path: int(path.parent.name))
    records: list[dict[str, Any]] = read_json(phases[-1] / "metrics.json")["records"] if phases else []
    for record in records:
        if (record["split"], record.get("decode")) == ("valid", decode):
            return float(record[f"{CHOOSE}@{k}"])
    text = f"{folder}: no validation rows were evaluated by {decode}. Leave --tune out, or take another --name."
    raise ValueError(text)
