"""Rows whose prompts are longer than the model sees: their oldest titles are left out, or the rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.config import Config
from rayrec.data import Dataset
from rayrec.data.mapped import each


def fit(config: Config, data: Dataset, tuning: pa.Table, template: Any, longest: int) -> tuple[Dataset, pa.Table]:
    """Return data and tuning rows (schema.EXAMPLES) with prompts of at most --max-length less ``longest`` tokens.

    ``--long-prompts trim`` leaves the oldest titles of a long row out, as few as need be, and --min-history or one
    stay, so that a row may still be too long; `drop` leaves the row out. ``counts`` has the rows of each split.
    """
    room, how, least = config.model.max_length - longest, config.data.long_prompts, config.data.min_history or 1
    counts, done = dict[str, int](), dict[int, pa.Table]()

    def fitted(name: str, table: pa.Table) -> pa.Table:
        if id(table) not in done:
            count = Counter[str]()
            made = each(table, lambda some: _change(some, room, how, least, template, count))
            counts.update({f"{name}_prompts_{kind}": rows for kind, rows in count.items()})
            done[id(table)] = made if count else table
        return done[id(table)]

    splits = {name: getattr(data, name) for name in ("train", "valid", "test", "adherence")}
    splits = {name: fitted(name, table) for name, table in splits.items() if table is not None}
    tuning = fitted("tuning", tuning)
    return dataclasses.replace(data, **splits, counts=data.counts | counts), tuning


def _change(some: pa.Table, room: int, how: str, least: int, template: Any, count: Counter[str]) -> pa.Table:
    lengths = np.fromiter(map(len, template.prompts(some)), np.int64, len(some))
    if not (lengths > room).any():
        return some
    if how == "drop":
        count["dropped"] += int((lengths > room).sum())
        return some.filter(pa.array(lengths <= room))
    rows = some.to_pylist()
    left = [int(i) for i in np.flatnonzero(lengths > room) if len(rows[i]["history"]) > least]
    count["trimmed"] += len(left)
    while left:
        for i in left:
            rows[i]["history"] = rows[i]["history"][1:]
            if rows[i]["history_ratings"] is not None:
                rows[i]["history_ratings"] = rows[i]["history_ratings"][1:]
        prompts = template.prompts(pa.Table.from_pylist([rows[i] for i in left], schema=some.schema))
        left = [i for i, ids in zip(left, prompts, strict=True) if len(ids) > room and len(rows[i]["history"]) > least]
    return pa.Table.from_pylist(rows, schema=some.schema)
