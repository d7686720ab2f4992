"""Limits of measures, such as ``ORRatio<0.2``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rayrec.watch.measures import MEASURES, Watched


class Limit(NamedTuple):
    """A limit of a measure: below or above a number."""

    name: str
    below: bool
    number: float

    def __str__(self) -> str:
        return f"{self.name}{'<' if self.below else '>'}{self.number:g}"


def parse(texts: Sequence[str]) -> list[Limit]:
    """Return the limits of texts; ValueError: an unknown measure or form."""
    found = []
    for text in texts:
        parts = re.fullmatch(r"(\w+)\s*([<>])\s*(\d+(?:\.\d+)?|\.\d+)", text.strip())
        if not parts or parts[1] not in MEASURES:
            raise ValueError(
                f"--limits {text!r}: wanted NAME<NUMBER or NAME>NUMBER with one of {', '.join(MEASURES)}, in quotes."
            )
        found.append(Limit(parts[1], parts[2] == "<", float(parts[3])))
    return found


def passed(watched: Sequence[Watched], limits: Sequence[Limit]) -> list[str]:
    """Return a line for each limit that the last period of a policy does not keep.

    A measure that is undefined there keeps no limit: nobody watches it.
    """
    last = {one.key.policy: one for one in watched}  # in order of time
    lines = []
    for one in last.values():
        for limit in limits:
            value = one.measures[limit.name].value
            if value is None or (value >= limit.number if limit.below else value <= limit.number):
                shown = "undefined" if value is None else f"{value:.4g}"
                lines.append(f"{one.key.policy}, {one.key.period}: {limit.name} is {shown}, wanted {limit}")
    return lines
