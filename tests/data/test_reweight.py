"""RW by hand, and that it evens out what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data import load
from rayrec.data.catalogue import Catalogue
from rayrec.data.reweight import by_genre
from rayrec.data.settings import DataConfig

CATALOGUE = Catalogue(
    ["Axe", "Bow", "Cup", "Den"], [["war"], ["war", "fun"], ["fun", "odd"], []], np.ones(4, np.int64), ["war", "fun"]
)


def rows(*pairs: tuple[list[str], str]) -> pa.Table:
    return pa.table({"history": [history for history, _ in pairs], "target": [target for _, target in pairs]})


def test_by_hand() -> None:
    # Histories: war 3 of 5 mentions, fun 2 of 5 ("odd" is not selected). Targets: war 2 of 4, fun 2 of 4.
    table = rows((["Axe", "Bow"], "Axe"), (["Cup", "Axe"], "Bow"), (["Den"], "Cup"), (["Den"], "Den"))
    war, fun = (3 / 5) / (2 / 4), (2 / 5) / (2 / 4)
    wanted = np.array([war, (war + fun) / 2, fun, 1.0])
    assert by_genre(table, CATALOGUE) == pytest.approx(wanted / wanted.mean())


def test_genres_that_no_history_has_make_no_padding() -> None:
    weights = by_genre(rows((["Axe"], "Axe"), (["Axe"], "Cup")), CATALOGUE)
    assert weights == pytest.approx([2, 0]) and weights[1] > 0 and np.float32(weights[1]) > 0


def test_targets_outside_the_catalogue_weigh_as_those_without_genre() -> None:
    table = rows((["Axe"], "Axe"), (["Axe"], "Elk"), (["Bow"], "Den"))
    weights = by_genre(table, CATALOGUE)
    assert weights[1] == weights[2] and weights.mean() == pytest.approx(1)


def test_single_genre_targets_get_the_histories_shares() -> None:
    data = load(DataConfig(source="synthetic", seed=0))
    titles = [t for t, names in zip(data.catalogue.titles, data.catalogue.genres, strict=True) if len(names) == 1]
    train = data.train.filter(pa.array([target in set(titles) for target in data.train["target"].to_pylist()]))
    genre_of = dict(zip(data.catalogue.titles, data.catalogue.genres, strict=True))
    weights, selected = by_genre(train, data.catalogue), data.catalogue.selected_genres

    def shares(genres: list[list[str]], mass: np.ndarray) -> np.ndarray:
        total = np.array([sum(m for names, m in zip(genres, mass, strict=True) if g in names) for g in selected])
        return total / total.sum()

    history = [genre_of[title] for titles in train["history"].to_pylist() for title in titles]
    target = [genre_of[title] for title in train["target"].to_pylist()]
    wanted = shares(history, np.ones(len(history)))
    before, after = shares(target, np.ones(len(target))), shares(target, weights)
    assert np.abs(after - wanted).max() < 1e-9 < np.abs(before - wanted).max()


def test_data_without_genres_is_refused() -> None:
    with pytest.raises(ValueError, match=r"histories have the genres \['war'\], targets \['fun'\], wanted one"):
        by_genre(rows((["Axe"], "Cup")), CATALOGUE)
    plain = dataclasses.replace(CATALOGUE, selected_genres=[])
    with pytest.raises(ValueError, match="--reweight genre: the titles of 1 training rows have no genre"):
        by_genre(rows((["Axe"], "Bow")), plain)
