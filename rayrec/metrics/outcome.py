"""What the metrics read: top-k lists and histories as numbers, joined by ``example_id`` and checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.mapped import slices, take

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue


@dataclass(frozen=True)
class Outcome:
    """N evaluated rows over I catalogue items and G selected genres; L is the longest list."""

    rank_N: np.ndarray  #: place of the target in its list, from 1; 0 where it is absent
    items_NL: np.ndarray  #: items of the lists, best first; -1 where nothing was returned
    history_I: np.ndarray  #: how often an item stands in the histories of the rows
    genre_IG: np.ndarray  #: weight 1/n of an item on each of its n selected genres; a row of 0 where it has none
    outside: int  #: titles of the histories that are not in the catalogue

    def returned(self, k: int) -> np.ndarray:
        """How often each item stands among the first ``k`` of the lists, (I,); its sum is M, the items returned."""
        items = self.items_NL[:, :k]
        return np.bincount(items[items >= 0], minlength=len(self.history_I))


def ranks(predictions: pa.Table) -> np.ndarray:
    """Place of every row's target in its ``titles``, from 1; 0 where it is absent. (N,) int64, in row order."""
    found = []
    for some in slices(predictions):
        rows = zip(some["target"].to_pylist(), some["titles"].to_pylist(), strict=True)
        found.append([list_.index(target) + 1 if target in list_ else 0 for target, list_ in rows])
    return np.concatenate([np.zeros(0, np.int64), *found]).astype(np.int64)


def genre_weights(catalogue: Catalogue) -> np.ndarray:
    """Weight 1/n of every item on each of its n selected genres, (I, G); 0 everywhere for an item without one."""
    has_IG = np.array([[g in genres for g in catalogue.selected_genres] for genres in catalogue.genres], dtype=float)
    has_IG = has_IG.reshape(len(catalogue.genres), len(catalogue.selected_genres))
    return has_IG / np.maximum(has_IG.sum(axis=1, keepdims=True), 1)


def aligned(predictions: pa.Table, examples: pa.Table) -> pa.Table:
    """Return the examples in the order of ``predictions``.

    Raises:
        ValueError: the two tables do not hold the same example ids once each, or disagree on a target.
    """
    ids, own = (table["example_id"].combine_chunks() for table in (predictions, examples))
    made, there = len(ids.unique()), len(own.unique())
    place = pc.call_function("index_in", [ids], pc.SetLookupOptions(own))
    if made != len(ids) or there != len(own) or made != there or place.null_count:
        odd = sorted(set(ids.to_pylist()) ^ set(own.to_pylist()))[:3]
        raise ValueError(
            f"Found {len(ids)} predictions ({made} distinct) for {len(own)} examples ({there} distinct), on one side "
            f"only: {odd}. Give one prediction for each evaluated example, and no others."
        )
    order = place.to_numpy()
    examples = examples if (order == np.arange(len(order))).all() else take(examples, order)
    different = np.flatnonzero(pc.call_function("not_equal", [predictions["target"], examples["target"]]).to_numpy())
    if len(different):
        first = int(different[0])
        raise ValueError(
            f"Example {ids[first]}: the prediction's target is {predictions['target'][first].as_py()!r}, the example's "
            f"{examples['target'][first].as_py()!r}. Evaluate predictions against the examples they were made for."
        )
    return examples


def outcome(predictions: pa.Table, examples: pa.Table, catalogue: Catalogue) -> Outcome:
    """Number the lists of ``predictions`` and the histories of their ``examples`` by the items of ``catalogue``.

    Raises:
        ValueError: ids or targets do not match, a list holds a title twice or one that is not in the catalogue.
    """
    longest = pc.call_function("list_value_length", [predictions["titles"]]).to_numpy().max(initial=0)
    items_NL = np.full((len(predictions), longest), -1, dtype=np.int32)
    history_I, outside, row = np.zeros(len(catalogue.titles), dtype=np.int64), 0, 0
    for some, rows in zip(slices(predictions), slices(aligned(predictions, examples)), strict=True):
        for example_id, titles in zip(some["example_id"].to_pylist(), some["titles"].to_pylist(), strict=True):
            items_NL[row, : len(titles)] = _items(example_id, titles, catalogue)
            row += 1
        met = [title for history in rows["history"].to_pylist() for title in history]
        known = [catalogue.index[title] for title in met if title in catalogue.index]
        history_I += np.bincount(np.array(known, dtype=np.int64), minlength=len(history_I))
        outside += len(met) - len(known)
    return Outcome(ranks(predictions), items_NL, history_I, genre_weights(catalogue), outside)


def _items(example_id: str, titles: list[str], catalogue: Catalogue) -> list[int]:
    """The numbers of a list's titles."""
    outside = [title for title in titles if title not in catalogue.index]
    if outside or len(set(titles)) < len(titles):
        raise ValueError(
            f"Example {example_id}: the list {titles} must hold distinct catalogue titles"
            + (f", but {outside} are not in the catalogue." if outside else ".")
            + " Ground the answers before evaluating them."
        )
    return [catalogue.index[title] for title in titles]
