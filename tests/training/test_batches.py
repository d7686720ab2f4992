"""Tokens of training rows."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data import schema
from rayrec.models.policy import load_tokenizer
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.prompts import Template, make_template
from rayrec.training.batches import Tokenise
from rayrec.training.lane import Pace

TITLES = [f"The Return of Number {i}" for i in range(6)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    folder = tmp_path_factory.mktemp("base")
    make_tiny(TITLES, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), folder, 0)
    return make_template("compact", load_tokenizer(str(folder)))


def row(rejected: list[str], ids: list[list[int] | None], neighbour: str | None = None) -> dict:
    return {"example_id": "e", "history": TITLES[:2], "chosen": TITLES[2], "weight": 1.0, "step": 0, "slot": 0} | {
        "rejected": rejected,
        "rejected_ids": ids,
        "neighbour": neighbour,
    }


ANSWERS = st.lists(st.tuples(st.sampled_from(TITLES), st.none() | st.lists(st.integers(0, 9), min_size=1)), max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ANSWERS, st.none() | st.sampled_from(TITLES)), max_size=4))
def test_an_answer_is_the_ids_that_were_written_or_its_text(template: Template, rows: list[tuple]) -> None:
    made = [row([text for text, _ in one], [ids for _, ids in one], neighbour) for one, neighbour in rows]
    table = Tokenise("prefer", template)(pa.Table.from_pylist(made, schema=schema.PREFERENCES))
    assert table.schema == schema.TOKENS
    tokens = template.answer_ids
    for (one, neighbour), found in zip(rows, table.to_pylist(), strict=True):
        assert found["prompt"] == template.prompt_ids(TITLES[:2])
        assert found["answers"] == [tokens(TITLES[2]), *(ids or tokens(text) for text, ids in one)]
        assert found["neighbour"] == (None if neighbour is None else tokens(neighbour))


def test_rows_without_ids_and_of_pretraining(template: Template) -> None:
    table = pa.Table.from_pylist([row([], [])], schema=schema.PREFERENCES)
    sft = pa.Table.from_pylist([row(TITLES[:1], []) | {"rejected_ids": None}], schema=schema.PREFERENCES)
    wanted = [[template.answer_ids(TITLES[2]), template.answer_ids(TITLES[0])]]
    assert Tokenise("sft", template)(sft)["answers"].to_pylist() == wanted
    assert Tokenise("pretrain", template)(table)["answers"].to_pylist() == [[template.sequence_ids(TITLES[:3])[1]]]


@pytest.mark.parametrize(
    ("warmup", "steps", "found"),
    [(20.0, 32, 20), (None, 32, 16), (None, 160, 20), (0.05, 240, 12), (0.05, 140, 7), (0.05, 30, 2), (0.0, 9, 0)],
)
def test_a_warm_up_is_as_long_as_published(warmup: float | None, steps: int, found: int) -> None:
    """SPRec's 20 steps are 20 of 32, and 5 % are a share of every phase."""
    assert Pace(1e-4, warmup, "linear").steps(steps) == found
