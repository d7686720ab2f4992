"""The items that can be recommended: titles, genres and their popularity in the training split."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from rayrec.data import schema

#: Genres that MGU and DGU use where the data names none.
DEFAULT_GENRES = 10


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items in a fixed order; an item's number is its place in ``titles``.

    ``popularity`` (I,) counts interactions of the training split; ``selected_genres`` are those that MGU and DGU use.
    """

    titles: list[str]
    genres: list[list[str]]
    popularity: np.ndarray
    selected_genres: list[str]

    @classmethod
    def from_items(cls, titles: Iterable[str], genres: Iterable[Sequence[str]]) -> Catalogue:
        """Merge identical titles, with the union of their genres. ValueError: no item, or an empty title."""
        merged: dict[str, dict[str, None]] = {}
        for title, names in zip(titles, genres, strict=True):
            merged.setdefault(title, {}).update(dict.fromkeys(name for name in names if name))
        if not merged:
            raise ValueError("The catalogue is empty: found no item. Name a folder whose item file has rows.")
        if any(not title.strip() for title in merged):
            raise ValueError("The catalogue has an empty title, but a title is what names an item. Remove that item.")
        return cls(list(merged), [list(names) for names in merged.values()], np.zeros(len(merged), np.int64), [])

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
        columns = [range(len(self)), self.titles, self.genres, self.popularity]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema.CATALOGUE, strict=True)]
        metadata = {"selected_genres": json.dumps(self.selected_genres)}
        return pa.Table.from_arrays(arrays, schema=schema.CATALOGUE.with_metadata(metadata))

    @classmethod
    def from_table(cls, table: pa.Table) -> Catalogue:
        """Return the catalogue that :meth:`to_table` wrote; ValueError for any other table."""
        selected = (table.schema.metadata or {}).get(b"selected_genres")
        if selected is None:
            raise ValueError("catalogue: the metadata lacks `selected_genres`. Write it with Catalogue.to_table.")
        columns = schema.check(table, schema.CATALOGUE, "catalogue").to_pydict()
        titles = columns["title"]
        if columns["item"] != list(range(len(titles))) or len(set(titles)) != len(titles):
            raise ValueError(
                "catalogue: items must be numbered from 0 in order and have distinct titles. "
                "Write it with Catalogue.to_table."
            )
        return cls(titles, columns["genres"], np.array(columns["popularity"], np.int64), json.loads(selected))
