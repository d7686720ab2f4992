"""Rows whose target is no title, under a loss that chooses among titles."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rayrec.data.catalogue import Catalogue
from rayrec.models.policy import load_tokenizer
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.objectives.settings import SupervisedConfig
from rayrec.prompts import make_template
from rayrec.training import supervised

TITLES = ["The Blue Door", "The Blue Lamp", "A Quiet Year", "It Rains"]
CONFIG = SupervisedConfig(sft_loss="msl", sft_eta=0.5)


@pytest.fixture
def catalogue() -> Catalogue:
    items = Catalogue.from_items(TITLES, [()] * len(TITLES))
    return items.with_training(np.ones(len(TITLES), np.int64), [])


def targets(*titles: str) -> pa.Table:
    return pa.table({"target": list(titles)})


def test_rows_without_a_title_are_named_and_too_many_are_refused(catalogue: Catalogue) -> None:
    rows = targets(*TITLES * 5, "It")
    assert supervised.outside(CONFIG, catalogue, rows) == ["It"]
    assert not supervised.outside(SupervisedConfig(), catalogue, rows), "plain SFT writes any text"
    with pytest.raises(ValueError, match="1 of 2 rows to tune on have another target, such as 'It'"):
        supervised.outside(CONFIG, catalogue, targets(TITLES[0], "It"))


def test_a_row_without_a_title_becomes_padding(catalogue: Catalogue, tmp_path) -> None:
    make_tiny([*TITLES, "It"], ModelConfig(tiny_vocab=300, tiny_hidden=32, tiny_layers=1), tmp_path, 0)
    template = make_template("compact", load_tokenizer(str(tmp_path)))
    made = supervised.make(CONFIG, catalogue, template)
    assert made is not None
    steps = supervised.CatalogueSteps(made, "cpu", [])

    def row(title: str) -> dict:
        return {"prompt": [5, 6], "answers": [template.answer_ids(title)], "weight": 1.0, "neighbour": None}

    ((title, other),) = steps.numbered([[row(TITLES[1]), row("It")]])
    assert (title["item"], title["weight"]) == (1, 1.0) and steps.count(title) > 0
    assert (other["item"], other["weight"], other["prompt"]) == (-1, 0.0, [5]) and len(other["answers"][0]) == 1
    assert steps.count(other) == 0
    before = steps.temperature
    record = {"gap": 0.0, "variance": 0.0, "first": 0.0}
    steps.after(record)
    assert record == {"temperature": before}, "a step of such rows alone leaves the temperature as it is"
