"""The rejected answers of an iteration as files: read back and joined, whoever wrote them with whatever slices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from rayrec.data import mapped, preferences, schema
from rayrec.data.catalogue import Catalogue
from rayrec.data.dataset import numbered
from rayrec.driver.checks import resolve
from rayrec.generation import lane
from rayrec.grounding import TitleEmbedder
from rayrec.lanes import Policy, Shared
from rayrec.methods import parse
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage

TITLES = [f"Title {i}" for i in range(12)]
QUIET: Any = SimpleNamespace(start=lambda *_: None, update=lambda *_: None, finish=lambda *_: None)


def draw() -> tuple[pa.Table, pa.Table]:
    """Nine examples and a draw of 12, which holds three of them twice."""
    row = {"split": "train", "user": "u", "timestamp": 0, "history": TITLES[:3], "target": TITLES[3]}
    train = numbered(pa.Table.from_pylist([row | {"example_id": f"e{i}"} for i in range(9)], schema=schema.EXAMPLES))
    return train, preferences.draw(train, 0, 12, 0, "iterations")


def pairs(root: Path, size: int, *flags: str) -> pa.Table:
    """The pairs of the draw from the run folder ``root``, by a process whose slices have ``size`` rows."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (mapped, lane):
            patch.setattr(module, "SLICE", size, raising=False)
        train, drawn = draw()
        data: Any = SimpleNamespace(train=train, catalogue=Catalogue.from_items(TITLES, [[]] * len(TITLES)))
        config, storage = resolve(parse("", ["--num-negatives", "2", *flags])), Storage(str(root))
        work = Run(storage, root / "run", config, {"data": ""})
        shared = Shared(config, data, work, None, 1, 1, lambda *_: None, QUIET)
        generators = lane.GenerateLane(shared, lambda: None, TitleEmbedder(TITLES))
        return preferences.pairs(drawn, generators.negatives(Policy("base", root), drawn, 1).result())


@pytest.mark.parametrize("flags", [["--negatives", "random"], ["--negatives", "random:0.5", "popular:0.5"]])
@pytest.mark.parametrize(("wrote", "reads"), [(4, 100), (100, 4), (4, 3)])
def test_the_size_of_slices_is_no_part_of_the_files(tmp_path: Path, flags: list[str], wrote: int, reads: int) -> None:
    made = pairs(tmp_path / "one", wrote, *flags)
    assert made["example_id"].to_pylist() == draw()[1]["example_id"].to_pylist()
    assert all(len(rejected) == 2 for rejected in made["rejected"].to_pylist())
    assert pairs(tmp_path / "one", reads, *flags).equals(made)
    assert pairs(tmp_path / "two", reads, *flags).equals(made)
