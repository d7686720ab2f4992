"""What the metrics read: top-k lists and histories as numbers, joined by ``example_id`` and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue


@dataclass(frozen=True)
class Outcome:
    """N evaluated rows over I catalogue items and G selected genres; L is the longest list."""

    rank_N: np.ndarray  #: place of the target in its list, from 1; 0 where it is absent
    items_NL: np.ndarray  #: items of the lists, best first; -1 where nothing was returned
    history_I: np.ndarray  #: how often an item stands in the histories of the rows
    genre_IG: np.ndarray  #: weight 1/n of an item on each of its n selected genres; a row of 0 where it has none

    def returned(self, k: int) -> np.ndarray:
        """How often each item stands among the first ``k`` of the lists, (I,); its sum is M, the items returned."""
        items = self.items_NL[:, :k]
        return np.bincount(items[items >= 0], minlength=len(self.history_I))


def ranks(predictions: pa.Table) -> np.ndarray:
    """Place of every row's target in its ``titles``, from 1; 0 where it is absent. (N,) int64, in row order."""
    targets, lists = predictions["target"].to_pylist(), predictions["titles"].to_pylist()
    found = [list_.index(target) + 1 if target in list_ else 0 for target, list_ in zip(targets, lists, strict=True)]
    return np.array(found, dtype=np.int64)


def genre_weights(catalogue: Catalogue) -> np.ndarray:
    """Weight 1/n of every item on each of its n selected genres, (I, G); 0 everywhere for an item without one."""
    has_IG = np.array([[g in genres for g in catalogue.selected_genres] for genres in catalogue.genres], dtype=float)
    has_IG = has_IG.reshape(len(catalogue.genres), len(catalogue.selected_genres))
    return has_IG / np.maximum(has_IG.sum(axis=1, keepdims=True), 1)


def histories(predictions: pa.Table, examples: pa.Table) -> list[list[str]]:
    """Return the history of every prediction's example, in the order of ``predictions``.

    Raises:
        ValueError: the two tables do not hold the same example ids once each, or disagree on a target.
    """
    rows = dict(zip(examples["example_id"].to_pylist(), zip(*_columns(examples), strict=True), strict=True))
    ids = predictions["example_id"].to_pylist()
    if len(set(ids)) != len(ids) or len(rows) != examples.num_rows or set(ids) != set(rows):
        odd = sorted(set(ids) ^ set(rows))[:3]
        raise ValueError(
            f"Found {len(ids)} predictions ({len(set(ids))} distinct) for {examples.num_rows} examples ({len(rows)} "
            f"distinct), on one side only: {odd}. Give one prediction for each evaluated example, and no others."
        )
    for example_id, target in zip(ids, predictions["target"].to_pylist(), strict=True):
        if rows[example_id][0] != target:
            raise ValueError(
                f"Example {example_id}: the prediction's target is {target!r}, the example's {rows[example_id][0]!r}. "
                "Evaluate predictions against the examples they were made for."
            )
    return [rows[example_id][1] for example_id in ids]


def outcome(predictions: pa.Table, history: list[list[str]], catalogue: Catalogue) -> Outcome:
    """Number the lists of ``predictions`` and the ``history`` of their rows by the items of ``catalogue``.

    History titles outside the catalogue are left out (:func:`rayrec.metrics.evaluate` counts them).

    Raises:
        ValueError: a list holds a title twice or a title that is not in the catalogue.
    """
    lists = predictions["titles"].to_pylist()
    for example_id, titles in zip(predictions["example_id"].to_pylist(), lists, strict=True):
        outside = [title for title in titles if title not in catalogue.index]
        if outside or len(set(titles)) < len(titles):
            raise ValueError(
                f"Example {example_id}: the list {titles} must hold distinct catalogue titles"
                + (f", but {outside} are not in the catalogue." if outside else ".")
                + " Ground the answers before evaluating them."
            )
    items_NL = np.full((len(lists), max(map(len, lists), default=0)), -1, dtype=np.int64)
    for row, titles in zip(items_NL, lists, strict=True):
        row[: len(titles)] = [catalogue.index[title] for title in titles]
    known = [catalogue.index[title] for titles in history for title in titles if title in catalogue.index]
    history_I = np.bincount(np.array(known, dtype=np.int64), minlength=len(catalogue.titles))
    return Outcome(ranks(predictions), items_NL, history_I, genre_weights(catalogue))


def _columns(examples: pa.Table) -> tuple[list[str], list[list[str]]]:
    return examples["target"].to_pylist(), examples["history"].to_pylist()
