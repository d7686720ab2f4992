"""Titles and prompts that are longer than the model sees.

Such titles are left out of the catalogue; of a long prompt they and its oldest titles are, or its row is.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.config import Config
from rayrec.data import Dataset
from rayrec.data.mapped import each
from rayrec.prompts import trim

#: A catalogue of which a larger share of titles is too long wants another limit.
_MOST = 0.1


def longest_answer(config: Config) -> int:
    """Return the most tokens of an answer: --max-new-tokens, or half of --max-length."""
    return config.model.max_new_tokens or config.model.max_length // 2


def long_titles(config: Config, data: Dataset, template: Any) -> dict[str, int]:
    """Return the titles that are longer than an answer may be, with their tokens, the longest one first.

    Raises:
        ValueError: they are more than one and more than a tenth of all titles.
    """
    tables = (data.train, *data.evaluated.values())
    targets = (title for table in tables for title in table["target"].unique().to_pylist())
    every = {title: len(template.answer_ids(title)) for title in dict.fromkeys([*data.catalogue.titles, *targets])}
    long = {title: length for title, length in every.items() if length > longest_answer(config)}
    if len(long) > max(1, _MOST * len(every)):
        title, length = max(long.items(), key=lambda one: one[1])
        least = sorted(every.values())[int((1 - _MOST) * len(every))]
        remedy = f"Take --max-new-tokens {least} or more"
        if config.model.max_new_tokens is None:
            remedy = f"Raise --max-length to {2 * least} or more"
        raise ValueError(
            f"{len(long)} of {len(every)} titles have more than {longest_answer(config)} tokens, which "
            f"{_limit(config)} leaves to an answer; {title!r:.80} has {length}. {remedy}, or shorten the titles."
        )
    return dict(sorted(long.items(), key=lambda one: -one[1]))


def _limit(config: Config) -> str:
    most = config.model.max_new_tokens
    return f"--max-length {config.model.max_length}" if most is None else f"--max-new-tokens {most}"


def told(config: Config, data: Dataset, long: Mapping[str, int]) -> Dataset:
    """Return ``data``, which was read without ``long``, with counts and a line of the plan about these titles."""
    shown = ", ".join(f"{title!r:.60} ({length} tokens)" for title, length in list(long.items())[:3])
    rows = sum(count for name, count in data.counts.items() if name.endswith("_rows_of_long_titles"))
    line = (
        f"{len(long):,} left out of the catalogue, and {rows:,} rows that ask for them: {shown}"
        f"{', …' if len(long) > 3 else ''}; an answer has at most {longest_answer(config)} ({_limit(config)})"
    )
    counts = {"titles_too_long": len(long)}
    return dataclasses.replace(data, told={"long titles": line} | data.told, counts=data.counts | counts)


def rooms(config: Config, some: pa.Table, template: Any, longest: int, evaluated: bool) -> np.ndarray:
    """Return the most tokens of each prompt, (N,): what --max-length leaves beside the answer.

    That is any title, of ``longest`` tokens, where a policy answers or where answers are compared; the row's own target
    where the row is for SFT alone.
    """
    if evaluated or (config.train.prefer and config.train.iterations):
        return np.full(len(some), config.model.max_length - longest)
    return config.model.max_length - template.answer_lengths(some["target"])


def fit(
    config: Config, data: Dataset, tuning: pa.Table, template: Any, longest: int, long: Collection[str] = ()
) -> tuple[Dataset, pa.Table]:
    """Return data and tuning rows (schema.EXAMPLES) with prompts that fit beside their answers (:func:`rooms`).

    ``--long-prompts trim`` leaves titles of a long row's history out: the ``long`` ones, which no answer can hold, then
    the oldest, as few as need be. --min-history or one stay, so that a row may still be too long. `drop` leaves the row
    out. ``counts`` has the rows of each split.

    Raises:
        ValueError: no row of a split is left.
    """
    how, least = config.data.long_prompts, config.data.min_history or 1
    counts, done = dict[str, int](), dict[int, pa.Table]()

    def fitted(name: str, table: pa.Table) -> pa.Table:
        if id(table) not in done:
            count, evaluated = Counter[str](), name in data.evaluated

            def change(some: pa.Table) -> pa.Table:
                room = rooms(config, some, template, longest, evaluated)
                if how == "drop":
                    return _dropped(some, room, template, count)
                return _trimmed(some, room, least, long, template, count)

            made = each(table, change)
            if not len(made):
                most = f"--max-length {config.model.max_length}"
                raise ValueError(
                    f"--long-prompts drop leaves none of {len(table)} {name} rows: with its answer each is longer than "
                    f"{most}. Raise that up to the model's context, shorten --history, or take --long-prompts trim."
                )
            counts.update({f"{name}_prompts_{kind}": rows for kind, rows in count.items()})
            done[id(table)] = made if count else table
        return done[id(table)]

    splits = {name: getattr(data, name) for name in ("train", "valid", "test", "adherence")}
    splits = {name: fitted(name, table) for name, table in splits.items() if table is not None}
    tuning = fitted("tuning", tuning)
    return dataclasses.replace(data, **splits, counts=data.counts | counts), tuning


def _dropped(some: pa.Table, room: np.ndarray, template: Any, count: Counter[str]) -> pa.Table:
    fits = template.lengths(some) <= room
    if not fits.all():
        count["dropped"] += int((~fits).sum())
    return some.filter(pa.array(fits))


def _trimmed(
    some: pa.Table, room: np.ndarray, least: int, long: Collection[str], template: Any, count: Counter[str]
) -> pa.Table:
    over = np.flatnonzero(template.lengths(some) > room).tolist()
    if not over:
        return some
    rows = some.to_pylist()
    left = [i for i in over if len(rows[i]["history"]) > least]
    count["trimmed"] += len(left)
    trim([rows[i] for i in left], some.schema, room[left].tolist(), template, least, long)
    return pa.Table.from_pylist(rows, schema=some.schema)
