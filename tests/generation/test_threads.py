"""The last evaluation, beside which nothing is trained, has all threads, however the phases are ordered."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrec.driver.checks import resolve
from rayrec.errors import Stopped
from rayrec.generation.engine import Part
from rayrec.generation.lane import GenerateLane
from rayrec.grounding import TitleEmbedder
from rayrec.lanes import Policy, Shared
from rayrec.methods import parse
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from tests.generation.test_negatives import QUIET, TITLES, Catalogue, draw


class Pool:
    """Generators that are asked for one part."""

    def ask(self, count: int, part_of: Any, urgent: bool) -> Any:
        self.part: Part = part_of(0)
        raise Stopped("asked")


@pytest.mark.parametrize("order", [[], ["--sequential"]])
def test_the_last_evaluation_has_all_threads(tmp_path: Path, order: list[str]) -> None:
    train, drawn = draw()
    catalogue = Catalogue.from_items(TITLES, [[]] * len(TITLES))
    data: Any = SimpleNamespace(train=train, valid=train, evaluated={"test": drawn}, catalogue=catalogue)
    config = resolve(parse("", ["--preset", "toy", "--iterations", "2", *order]))
    work = Run(Storage(str(tmp_path)), tmp_path / "run", config, {"data": ""})
    template: Any = SimpleNamespace(prompts=lambda rows: [[1]] * len(rows), answer_ids=lambda title: [1])
    shared = Shared(config, data, work, template, 1, 2, progress=QUIET, last_threads=8)
    pool, threads = Pool(), []
    lane = GenerateLane(shared, lambda: pool, TitleEmbedder(TITLES))
    for t in (0, 1, 2):
        with pytest.raises(Stopped, match="asked"):
            lane.evaluate(Policy("base", tmp_path), None, t).result()
        threads.append(pool.part.threads)
    assert threads == [0, 0, 8]  # 0: the threads of a generator beside trainers
