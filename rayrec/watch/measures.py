"""The metrics of lists that were shown, with intervals over users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.data.catalogue import Catalogue
from rayrec.data.schema import places
from rayrec.metrics import METRICS, answers
from rayrec.metrics.base import Metric
from rayrec.metrics.intervals import Interval, jackknife, of_few
from rayrec.metrics.outcome import Answers, Outcome
from rayrec.watch.lists import Key

#: Names of all measures, in the order in which they are shown; those of rayrec.metrics have its definitions.
MEASURES = ("HR", "DivRatio", "ORRatio", "MGU", "Gini", "coverage", "new", "fallback")


@dataclass(frozen=True)
class Watched:
    """The measures of one policy in one period; without an interval where there is none, None where undefined."""

    key: Key
    lists: int
    measures: dict[str, Interval]

    def row(self) -> dict[str, Any]:
        """The numbers as JSON has them."""
        return {**self.key._asdict(), "lists": self.lists} | {
            name: {"value": one.value, "low": one.low, "high": one.high} for name, one in self.measures.items()
        }


def measure(
    key: Key,
    shown: pa.Table,
    items: Catalogue,
    k: int,
    outcomes: Mapping[str, str],
    histories: Mapping[str, list[str]],
) -> Watched:
    """Measure the first ``k`` places of lists (watch.lists.SHOWN).

    HR counts users with an outcome. ``Gini`` is that of how often each title of the catalogue is shown (0: all
    equally), ``coverage`` the share of the catalogue that is shown, ``new`` the share of places of titles that
    training never saw, ``fallback`` the share of lists of popular titles. MGU wants histories, and a run's catalogue
    for its genres.

    Raises:
        ValueError: a list holds a title that the catalogue does not have, or one twice.
    """
    users = shown["user"].to_pylist()
    target = pa.array([outcomes.get(user, "") for user in users], pa.string())
    asked = pa.table({"example_id": shown["user"], "titles": shown["titles"], "target": target})
    flat = shown["titles"].combine_chunks().flatten()
    if len(unknown := flat.filter(pa.array(places(flat, pa.array(items.titles)) < 0))):
        raise ValueError(
            f"{len(unknown)} places of {key.policy}, {key.period}, have titles that the catalogue does not have, such "
            f"as {unknown[0].as_py()!r}. Name the --catalogue that these lists are from."
        )
    found = answers(asked, None, items.titles)
    count_I, known_N = found.returned(k), np.array([user in outcomes for user in users])
    measures = {"HR": _mean(np.where(known_N, METRICS["HR"].of_rows(found, k), np.nan), users)}  # type: ignore[misc]
    for metric in (METRICS["DivRatio"], METRICS["ORRatio"]):
        measures[metric.name] = _of_lists(metric, found, users, k)
    measures["MGU"] = Interval(_mgu(found, items, users, histories, k))
    measures["Gini"] = Interval(gini(count_I))
    measures["coverage"] = Interval(float((count_I > 0).mean()))
    measures["new"] = _new(found, items, users, k)
    measures["fallback"] = _mean(np.array(shown["fallback"].to_pylist(), float), users)
    return Watched(key, len(shown), measures)


def gini(count_I: np.ndarray) -> float | None:
    """Return the Gini coefficient of counts, 0 where all are equal; None where all are 0.

    G = 2 Σ_i i·c_(i) / (I Σ c) − (I + 1)/I with the counts in rising order.
    """
    total, size = int(count_I.sum()), len(count_I)
    if not total:
        return None
    rising_I = np.sort(count_I)
    return float(2 * (np.arange(1, size + 1) * rising_I).sum() / (size * total) - (size + 1) / size)


def _of_lists(metric: Metric, found: Answers, users: list[str], k: int) -> Interval:
    value = metric.compute(found, k)
    if value is None or value < metric.least or metric.without is None:
        return Interval(value)
    return jackknife(value, metric.without(found, users, k), metric.ends)


def _mean(value_N: np.ndarray, users: list[str], weight_N: np.ndarray | None = None) -> Interval:
    """The mean of rows between 0 and 1, NaN for those that do not count, with its jackknife over users."""
    known_N = ~np.isnan(value_N)
    weight_N = known_N.astype(float) if weight_N is None else weight_N * known_N
    if not weight_N.sum():
        return Interval(None)
    _, user_N = np.unique(np.asarray(users, dtype=object), return_inverse=True)
    sum_U = np.bincount(user_N, weights=np.where(known_N, value_N, 0) * weight_N)
    weight_U = np.bincount(user_N, weights=weight_N)
    kept_U = weight_U > 0
    sum_U, weight_U = sum_U[kept_U], weight_U[kept_U]
    value = float(sum_U.sum() / weight_U.sum())
    if len(sum_U) < 2:
        return Interval(value)
    made = jackknife(value, (sum_U.sum() - sum_U) / (weight_U.sum() - weight_U), (0.0, 1.0))
    return of_few(made, value_N, users, weight_N)


def _new(found: Answers, items: Catalogue, users: list[str], k: int) -> Interval:
    """The share of places of titles without an interaction in training; None where popularity is not known."""
    if not items.popularity.any():
        return Interval(None)
    item_NK = found.items_NL[:, :k]
    shown_N = (item_NK >= 0).sum(axis=1)
    new_N = ((items.popularity == 0)[item_NK.clip(0)] & (item_NK >= 0)).sum(axis=1)
    return _mean(np.where(shown_N > 0, new_N / np.maximum(shown_N, 1), np.nan), users, shown_N.astype(float))


def _mgu(
    found: Answers, items: Catalogue, users: list[str], histories: Mapping[str, list[str]], k: int
) -> float | None:
    if not items.selected_genres or not histories:
        return None
    read = [title for user in users for title in histories.get(user, ())]
    item_M = places(pa.array(read, pa.string()), pa.array(items.titles))
    history_I = np.bincount(item_M[item_M >= 0], minlength=len(items))
    has_IG = np.array([[genre in own for genre in items.selected_genres] for own in items.genres], float)
    genre_IG = has_IG / np.maximum(has_IG.sum(axis=1, keepdims=True), 1)
    whole = Outcome(**vars(found), history_I=history_I, genre_IG=genre_IG, outside=int((item_M < 0).sum()))
    return METRICS["MGU"].compute(whole, k)
