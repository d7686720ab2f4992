"""Input of the metrics: top-k lists and histories as numbers, joined by ``example_id`` and checked once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from rayrec.data.catalogue import Catalogue


@dataclass(frozen=True)
class Answers:
    """The lists of N evaluated rows; L is the longest."""

    rank_N: np.ndarray  #: place of the target in its list, from 1; 0 where it is absent
    length_N: np.ndarray  #: titles in the list
    rating_N: np.ndarray  #: the user's rating of the target; NaN where it is unknown
    items_NL: np.ndarray  #: items of the lists, best first; -1 where nothing was returned
    items: int  #: number of items, I

    def returned(self, k: int) -> np.ndarray:
        """How often each item stands among the first k of the lists, (I,); its sum is M, the items returned."""
        item_NK = self.items_NL[:, :k]
        return np.bincount(item_NK[item_NK >= 0], minlength=self.items)

    def by_user(self, users: Sequence[str], k: int) -> csr_array:
        """:meth:`returned` for each user, (U, I), sorted by user; ``users`` has the user of each row."""
        names, user_N = np.unique(np.asarray(users, dtype=object), return_inverse=True)
        row, place = np.nonzero(self.items_NL[:, :k] >= 0)
        cells = (np.ones(len(row), dtype=np.int64), (user_N[row], self.items_NL[row, place]))
        return csr_array(cells, shape=(len(names), self.items))


@dataclass(frozen=True)
class Outcome(Answers):
    """Lists and histories of N rows over the I items of a catalogue and its G selected genres."""

    history_I: np.ndarray  #: how often an item stands in the histories of the rows
    genre_IG: np.ndarray  #: weight 1/n of an item on each of its n selected genres; a row of 0 where it has none
    outside: int  #: titles of the histories that are not in the catalogue


def answers(predictions: pa.Table, examples: pa.Table | None = None, titles: Sequence[str] | None = None) -> Answers:
    """Number the lists of ``predictions`` by their place in ``titles``, or by first appearance.

    Ratings are those of ``examples``, in the same order. Raises ValueError: a list holds a title twice, or one that is
    not in ``titles``.
    """
    lists = predictions["titles"].combine_chunks()
    flat, length_N = lists.flatten(), pc.call_function("list_value_length", [lists]).to_numpy()
    known = flat.unique() if titles is None else pa.array(titles, flat.type)
    item_M = _index(flat, known)
    row_M = np.repeat(np.arange(len(lists)), length_N)
    place_M = np.arange(len(flat)) - np.repeat(np.cumsum(length_N) - length_N, length_N)
    items_NL = np.full((len(lists), length_N.max(initial=0)), -1, dtype=np.int32)
    items_NL[row_M, place_M] = item_M
    ordered_NL = np.sort(items_NL, axis=1)
    twice_N = ((ordered_NL[:, 1:] == ordered_NL[:, :-1]) & (ordered_NL[:, 1:] >= 0)).any(axis=1)
    twice_N[row_M[item_M < 0]] = True
    if twice_N.any():
        row = predictions.slice(int(twice_N.argmax()), 1).to_pylist()[0]
        outside = [] if titles is None else [title for title in row["titles"] if title not in titles]
        raise ValueError(
            f"Example {row['example_id']}: the list {row['titles']} must hold distinct catalogue titles"
            + (f", but {outside} are not in the catalogue." if outside else ".")
            + " Ground the answers before evaluating them."
        )
    hit_M = pc.call_function("equal", [flat, predictions["target"].combine_chunks().take(pa.array(row_M))]).to_numpy(
        False
    )
    rank_N = np.zeros(len(lists), dtype=np.int64)
    rank_N[row_M[hit_M]] = place_M[hit_M] + 1
    rating_N = np.full(len(lists), np.nan)
    if examples is not None:
        rating_N = examples["target_rating"].to_numpy().astype(float)
    return Answers(rank_N, length_N, rating_N, items_NL, len(known))


def outcome(predictions: pa.Table, examples: pa.Table, catalogue: Catalogue) -> Outcome:
    """Number the lists of ``predictions`` and the histories of their ``examples`` by the items of ``catalogue``.

    Raises ValueError: ids or targets do not match, or as :func:`answers`.
    """
    examples = aligned(predictions, examples)
    history_M = _index(examples["history"].combine_chunks().flatten(), pa.array(catalogue.titles))
    history_I = np.bincount(history_M[history_M >= 0], minlength=len(catalogue.titles))
    # The weight of an item is split evenly over its selected genres.
    has_IG = np.array([[g in genres for g in catalogue.selected_genres] for genres in catalogue.genres], dtype=float)
    has_IG = has_IG.reshape(len(catalogue.genres), len(catalogue.selected_genres))
    genre_IG = has_IG / np.maximum(has_IG.sum(axis=1, keepdims=True), 1)
    each = answers(predictions, examples, catalogue.titles)
    return Outcome(**vars(each), history_I=history_I, genre_IG=genre_IG, outside=int((history_M < 0).sum()))


def aligned(predictions: pa.Table, examples: pa.Table) -> pa.Table:
    """Return the examples in the order of ``predictions``.

    Raises ValueError: the two tables do not hold the same example ids once each, or disagree on a target.
    """
    ids, own = (table["example_id"].combine_chunks() for table in (predictions, examples))
    distinct, others, order = len(ids.unique()), len(own.unique()), _index(ids, own)
    if distinct != len(ids) or others != len(own) or distinct != others or (order < 0).any():
        odd = sorted(set(ids.to_pylist()) ^ set(own.to_pylist()))[:3]
        raise ValueError(
            f"Found {len(ids)} predictions ({distinct} distinct) for {len(own)} examples ({others} distinct), on one "
            f"side only: {odd}. Give one prediction for each evaluated example, and no others."
        )
    examples = examples.take(pa.array(order))
    different = np.flatnonzero(pc.call_function("not_equal", [predictions["target"], examples["target"]]).to_numpy())
    if len(different):
        first = int(different[0])
        raise ValueError(
            f"Example {ids[first]}: the prediction's target is {predictions['target'][first].as_py()!r}, the example's "
            f"{examples['target'][first].as_py()!r}. Evaluate predictions against the examples they were made for."
        )
    return examples


def _index(values: pa.Array, known: pa.Array) -> np.ndarray:
    """Place of each value in ``known``, -1 where it is absent."""
    return pc.call_function("index_in", [values], pc.SetLookupOptions(known)).fill_null(-1).to_numpy(False)
