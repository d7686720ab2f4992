"""Answers become titles by their tokens, whatever text the tokenizer makes of these."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue
from rayrec.driver.checks import resolve
from rayrec.generation.engine import Answer, Mode, Part
from rayrec.generation.lane import GenerateLane
from rayrec.generation.outputs import Outputs
from rayrec.grounding import TitleEmbedder
from rayrec.lanes import Policy, Shared
from rayrec.methods import parse
from rayrec.prompts import make_template
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from tests.generation.test_negatives import QUIET
from tests.test_prompts import tokenizer

TITLES = [unicodedata.normalize("NFD", "Amélie"), "Heat (1995)", "Ran"]


def rewriting(how: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that changes texts before it reads them, as those of Qwen do (NFC)."""
    serialised = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())  # pyright: ignore
    serialised.normalizer = how
    return PreTrainedTokenizerFast(tokenizer_object=serialised, eos_token="<|eot_id|>")


class Pool:
    """Answers every prompt with all titles, as a search over the catalogue finds them."""

    def __init__(self, template: Any):
        self.template = template

    def ask(self, count: int, part_of: Callable[[int], Part], urgent: bool) -> Iterator[tuple[int, list[list[Answer]]]]:
        ids = [self.template.answer_ids(title) for title in TITLES]
        ids.append([*ids[2][:-1], *ids[2]])  # no title
        found = [Answer(one, self.template.text(one), -float(place)) for place, one in enumerate(ids)]
        for j in range(count):
            yield j, [found] * len(part_of(j).prompts)


@pytest.mark.parametrize("how", [normalizers.NFC(), normalizers.Lowercase()])  # pyright: ignore
@pytest.mark.parametrize("decode", [mode for mode in get_args(Mode) if mode != "score"])
def test_a_title_is_found_by_its_tokens(tmp_path: Path, how: Any, decode: Mode) -> None:
    template = make_template("compact", rewriting(how))
    assert template.lossy(TITLES)
    rows = [{"split": "test", "user": "u", "timestamp": 0, "history": TITLES[1:], "target": TITLES[0]}]
    examples = pa.Table.from_pylist([row | {"example_id": f"e{i}"} for i, row in enumerate(rows * 3)], schema.EXAMPLES)
    data: Any = SimpleNamespace(catalogue=Catalogue.from_items(TITLES, [[]] * len(TITLES)))
    config, storage = resolve(parse("", ["--part", "2"])), Storage(str(tmp_path))
    work = Run(storage, tmp_path / "run", config, {"data": ""})
    shared = Shared(config, data, work, template, 1, 1, lambda *_: None, QUIET)
    policy = Policy("00/sft", tmp_path / "none" / "policy")
    made = Outputs(shared, lambda: Pool(template)).ask("00/evaluate/x", policy, examples, decode, 4)
    assert [texts[:3] for texts in made["texts"].to_pylist()] == [TITLES] * 3
    if decode in ("beams", "d3"):
        lane = GenerateLane(shared, lambda: None, TitleEmbedder(TITLES))
        assert lane._predictions(made, examples, decode)["titles"].to_pylist() == [TITLES] * 3
