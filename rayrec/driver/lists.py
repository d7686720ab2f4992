"""Ranked lists of the sequential recommenders and of Popular: titles and log-probabilities of each row, best first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from rayrec.data import Dataset
from rayrec.data.touched import Touched
from rayrec.models import sequential
from rayrec.models.popular import popular_choices, popular_lists

#: By kind: ``unmasked`` lists of all items, ``masked`` ones without the items that the user had touched, ``score``
#: lists of the row's candidates.
Lists = dict[str, tuple[list[list[str]], list[list[float]]]]


def of_popular(data: Dataset, rows: pa.Table, k: int) -> Lists:
    """The ``k`` most popular titles of each row, without log-probabilities."""
    none: list[list[float]] = [[] for _ in range(len(rows))]
    if not rows["candidates"].null_count:
        return {"score": (popular_choices(rows, data.catalogue, k), none)}
    left_out = {"unmasked": [()] * len(rows), "masked": _touched(data, rows)}
    return {kind: (popular_lists(rows, data.catalogue, k, one), none) for kind, one in left_out.items()}


def of_model(folder: Path, data: Dataset, rows: pa.Table, k: int) -> Lists:
    """The best ``k`` titles of each row by the model in ``folder``."""
    model, catalogue = sequential.load(folder), data.catalogue
    histories = sequential.item_numbers(rows["history"].to_pylist(), catalogue)
    if not rows["candidates"].null_count:
        return {"score": _choices(model, histories, rows, data, k)}
    left_out = {"unmasked": None, "masked": sequential.item_numbers(_touched(data, rows), catalogue)}
    made: Lists = {}
    for kind, one in left_out.items():
        items, logprobs = sequential.top_lists(model, histories, k, one)
        made[kind] = ([[catalogue.titles[i] for i in some] for some in items], logprobs)
    return made


def _touched(data: Dataset, rows: pa.Table) -> list[set[str]]:
    """The titles that each row's user touched before: in training, and in the row's history."""
    touched = Touched(data.train)
    users, histories = rows["user"].to_pylist(), rows["history"].to_pylist()
    return [{*touched.get(user, ()), *history} for user, history in zip(users, histories, strict=True)]


def _choices(
    model: Any, histories: list[list[int]], rows: pa.Table, data: Dataset, k: int
) -> tuple[list[list[str]], list[list[float]]]:
    """The best ``k`` candidates of each row and their scores; ties count against the target."""
    lists, found = [], []
    asked = zip(rows["target"].to_pylist(), rows["candidates"].to_pylist(), strict=True)
    for (target, titles), score_I in zip(asked, sequential.each_score(model, histories), strict=True):
        scored = [(float(score_I[data.catalogue.index[t]]), t) for t in titles if t in data.catalogue.index]
        scored.sort(key=lambda one: (-one[0], one[1] == target))
        lists.append([title for _, title in scored[:k]])
        found.append([score for score, _ in scored[:k]])
    return lists, found
