"""The items that can be recommended: titles, genres and their popularity in the training split."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from rayrec.data import schema
from rayrec.data.mapped import mapped, slices

#: Genres that MGU and DGU use where the data names none.
DEFAULT_GENRES = 10


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items in a fixed order; an item's number is its place in ``titles``.

    ``popularity`` (I,) counts interactions of the training split; ``selected_genres`` are those that MGU and DGU use;
    ``ids`` are the data's own names of each item, of which merged ones have several, or empty where they are not known.
    """

    titles: list[str]
    genres: list[list[str]]
    popularity: np.ndarray
    selected_genres: list[str]
    ids: list[list[str]] = field(default_factory=list)

    @classmethod
    def from_items(
        cls, titles: Iterable[str], genres: Iterable[Sequence[str]], ids: Iterable[str] | None = None
    ) -> Catalogue:
        """Merge identical titles, with the union of their genres. ValueError: no item, or an empty title."""
        merged: dict[str, dict[str, None]] = {}
        known: dict[str, list[str]] = {}
        for title, names, item in zip(titles, genres, itertools.repeat(None) if ids is None else ids, strict=False):
            merged.setdefault(title, {}).update(dict.fromkeys(name for name in names if name))
            known.setdefault(title, []).extend([] if item is None else [item])
        if not merged:
            raise ValueError("The catalogue is empty: found no item. Name a folder whose item file has rows.")
        if any(not title.strip() for title in merged):
            raise ValueError("The catalogue has an empty title, but a title is what names an item. Remove that item.")
        genres = [list(names) for names in merged.values()]
        return cls(list(merged), genres, np.zeros(len(merged), np.int64), [], list(known.values()))

    @cached_property
    def index(self) -> dict[str, int]:
        """Item number by title."""
        return {title: item for item, title in enumerate(self.titles)}

    def __len__(self) -> int:
        return len(self.titles)

    def with_training(self, popularity: np.ndarray, selected_genres: Sequence[str] | None) -> Catalogue:
        """Return the items with the popularity (I,) of the training split, and the genres that MGU and DGU use.

        Without ``selected_genres`` these are the ten with the most training interactions, ties by name.
        """
        if selected_genres is None:
            mass: Counter[str] = Counter()
            for names, count in zip(self.genres, popularity.tolist(), strict=True):
                mass.update(dict.fromkeys(names, count))
            selected_genres = sorted((g for g in mass if mass[g]), key=lambda g: (-mass[g], g))[:DEFAULT_GENRES]
        popularity = np.asarray(popularity, np.int64)
        return dataclasses.replace(self, popularity=popularity, selected_genres=list(selected_genres))

    def to_table(self) -> pa.Table:
        """Return the items by ``schema.CATALOGUE``, with the selected genres in its metadata (Parquet keeps it)."""
        ids = self.ids or [[]] * len(self)
        columns = [range(len(self)), self.titles, ids, self.genres, self.popularity]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema.CATALOGUE, strict=True)]
        metadata = {"selected_genres": json.dumps(self.selected_genres)}
        return pa.Table.from_arrays(arrays, schema=schema.CATALOGUE.with_metadata(metadata))

    @classmethod
    def from_table(cls, table: pa.Table) -> Catalogue:
        """Return the catalogue that :meth:`to_table` wrote; ValueError for any other table."""
        selected = (table.schema.metadata or {}).get(b"selected_genres")
        if selected is None:
            raise ValueError("catalogue: the metadata lacks `selected_genres`. Write it with Catalogue.to_table.")
        if "ids" not in table.column_names:  # an older run's
            table = table.append_column("ids", pa.array([[]] * len(table), schema.CATALOGUE.field("ids").type))
        columns = schema.check(table, schema.CATALOGUE, "catalogue").to_pydict()
        titles = columns["title"]
        if columns["item"] != list(range(len(titles))) or len(set(titles)) != len(titles):
            raise ValueError(
                "catalogue: items must be numbered from 0 in order and have distinct titles. "
                "Write it with Catalogue.to_table."
            )
        popularity = np.array(columns["popularity"], np.int64)
        return cls(titles, columns["genres"], popularity, json.loads(selected), columns["ids"])

    def identified(self, predictions: pa.Table, examples: pa.Table) -> pa.Table:
        """Add the user of each row of ``examples``, and the first id of each listed title, to its ``predictions``.

        The tables follow schema.PREDICTIONS and schema.EXAMPLES, row by row; the result has schema.IDENTIFIED.
        """
        first = {title: ids[0] for title, ids in zip(self.titles, self.ids, strict=False) if ids}

        def added(some: pa.Table, asked: pa.Table) -> pa.Table:
            items = [[first.get(title, "") for title in titles] for titles in some["titles"].to_pylist()]
            field = schema.IDENTIFIED.field("items")
            some = some.append_column("user", asked["user"]).append_column(field, pa.array(items, field.type))
            return schema.check(some, schema.IDENTIFIED, "predictions")

        return mapped(map(added, slices(predictions), slices(examples)), schema.IDENTIFIED)
