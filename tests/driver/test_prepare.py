"""The preparation of a run, before the first actor starts."""

from pathlib import Path
from typing import Any

import pytest

from rayrec.driver import checks
from rayrec.driver.prepare import prepare
from rayrec.methods import parse
from rayrec.prompts import Template
from rayrec.runs import cache


def test_a_run_that_goes_on_does_not_tokenise_its_prompts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--preset", "toy", "--runs", str(tmp_path / "runs")]
    first = prepare(parse("", args), tmp_path / "a")
    assert not (tmp_path / "runs").exists()  # nothing is written before a run is opened
    shared = tmp_path / "runs" / cache.SHARED / "lengths"
    cache.make_once(shared, first.lengths_key, lambda _: first.tokens._asdict())
    counted: list[int] = []
    prompts = Template.prompts

    def count(self: Template, table: Any) -> Any:
        counted.append(len(table))
        return prompts(self, table)

    monkeypatch.setattr(Template, "prompts", count)
    again = prepare(parse("", args), tmp_path / "b")
    assert again.tokens == first.tokens and counted == []
    other = prepare(parse("", [*args, "--history", "8"]), tmp_path / "c")
    assert sum(counted) > len(other.tuning)  # other prompts have other lengths
    assert checks.Lengths(**cache.find(shared, first.lengths_key) or {}) == first.tokens
