"""Input of the metrics: top-k lists and histories as numbers, joined by ``example_id`` and checked once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from rayrec.data.catalogue import Catalogue
from rayrec.data.schema import places


@dataclass(frozen=True)
class Answers:
    """The lists of N evaluated rows; L is the longest."""

    rank_N: np.ndarray  #: place of the target in its list, from 1; 0 where it is absent
    length_N: np.ndarray  #: titles in the list
    rating_N: np.ndarray  #: the user's rating of the target; NaN where it is unknown
    items_NL: np.ndarray  #: items of the lists, best first; -1 where nothing was returned
    items: int  #: number of items, I
    #: Whether training never saw the target, a title of the catalogue; empty where it is not known.
    cold_N: np.ndarray = field(default_factory=lambda: np.empty(0, bool), kw_only=True)
    #: Share of the policy's probability that it leaves to titles; NaN where it was not measured, empty where nowhere.
    kept_N: np.ndarray = field(default_factory=lambda: np.empty(0), kw_only=True)
    #: 1 where the target scores more than the last title of its list, else 0; NaN and empty as before.
    ahead_N: np.ndarray = field(default_factory=lambda: np.empty(0), kw_only=True)

    def returned(self, k: int) -> np.ndarray:
        """How often each item is among the first k of the lists, (I,); its sum is M, the items returned."""
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

    history_I: np.ndarray  #: how often an item is in the histories of the rows
    genre_IG: np.ndarray  #: weight 1/n of an item on each of its n selected genres; a row of 0 where it has none
    outside: int  #: titles of the histories that are not in the catalogue


def answers(predictions: pa.Table, examples: pa.Table | None = None, titles: Sequence[str] | None = None) -> Answers:
    """Number the lists by their place in ``titles``, or by first appearance; ratings are those of ``examples``.

    ValueError: a list holds a title twice, or one that is not in ``titles``.
    """
    lists = predictions["titles"].combine_chunks()
    flat, length_N = lists.flatten(), lists.value_lengths().to_numpy()
    known = flat.unique() if titles is None else pa.array(titles, flat.type)
    item_M = places(flat, known)
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
    target_M = predictions["target"].combine_chunks().take(pa.array(row_M))
    hit_M = pc.call_function("equal", [flat, target_M]).to_numpy(False)
    rank_N = np.zeros(len(lists), dtype=np.int64)
    rank_N[row_M[hit_M]] = place_M[hit_M] + 1
    rated = examples is not None
    rating_N = examples["target_rating"].to_numpy().astype(float) if rated else np.full(len(lists), np.nan)
    return Answers(rank_N, length_N, rating_N, items_NL, len(known), **_measured(predictions))


def _measured(predictions: pa.Table) -> dict[str, np.ndarray]:
    """Return ``kept_N`` and ``ahead_N``; none from tables of older runs, which lack their columns."""
    if not {"kept", "target_logprob"} <= {*predictions.column_names}:
        return {}
    kept_N, target_N = (predictions[name].to_numpy().astype(np.float64) for name in ("kept", "target_logprob"))
    logprobs = predictions["logprobs"].combine_chunks()
    length_N, flat = logprobs.value_lengths().to_numpy(), logprobs.flatten().to_numpy()
    last_N = np.full(len(length_N), np.nan)
    last_N[length_N > 0] = flat[np.cumsum(length_N)[length_N > 0] - 1]
    unknown_N = np.isnan(target_N) | np.isnan(last_N)
    return {"kept_N": kept_N, "ahead_N": np.where(unknown_N, np.nan, target_N > last_N)}


def outcome(predictions: pa.Table, examples: pa.Table, catalogue: Catalogue) -> Outcome:
    """Number lists and histories by the items of ``catalogue``; ValueError as :func:`aligned` and :func:`answers`."""
    examples = aligned(predictions, examples)
    history_M = places(examples["history"].combine_chunks().flatten(), pa.array(catalogue.titles))
    history_I = np.bincount(history_M[history_M >= 0], minlength=len(catalogue.titles))
    # The weight of an item is split evenly over its selected genres.
    has_IG = np.array([[g in genres for g in catalogue.selected_genres] for genres in catalogue.genres], dtype=float)
    has_IG = has_IG.reshape(len(catalogue.genres), len(catalogue.selected_genres))
    genre_IG = has_IG / np.maximum(has_IG.sum(axis=1, keepdims=True), 1)
    each = vars(answers(predictions, examples, catalogue.titles))
    each["cold_N"] = cold(predictions, catalogue.titles, catalogue.popularity)
    return Outcome(**each, history_I=history_I, genre_IG=genre_IG, outside=int((history_M < 0).sum()))


def cold(predictions: pa.Table, titles: Sequence[str], popularity_I: np.ndarray) -> np.ndarray:
    """Return whether the target of each row is one of ``titles`` whose popularity in training is 0, (N,)."""
    item_N = places(predictions["target"], pa.array(titles, pa.string()))
    return (item_N >= 0) & (popularity_I[item_N.clip(0)] == 0)


def aligned(predictions: pa.Table, examples: pa.Table) -> pa.Table:
    """Return the examples in the order of ``predictions``; ValueError if ids or targets differ."""
    ids, own = (table["example_id"].combine_chunks() for table in (predictions, examples))
    distinct, others, order = len(ids.unique()), len(own.unique()), places(ids, own)
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
