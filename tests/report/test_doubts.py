"""What the terminal and the report say of negatives and answers that are not what the method takes them for."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rayrec.config import Config, TrainConfig
from rayrec.data.catalogue import Catalogue
from rayrec.driver.session import Session
from rayrec.generation.outputs import prediction_table
from rayrec.lanes import Planned
from rayrec.negatives.draw import Draw
from rayrec.negatives.self_play import finish_self_play
from rayrec.report import doubts
from tests.negatives.conftest import catalogue, examples, outputs, statistics

__all__ = ["catalogue", "examples", "outputs"]


@pytest.fixture
def record(catalogue: Catalogue, examples: Any, outputs: Any) -> Any:
    """Build the record of a negatives phase from what the policy wrote for targets D, E, F and G."""

    def build(*texts: str, **draw: Any) -> dict:
        draws, wrote = Draw(1, 0, 1, "00/sft", **draw), outputs(*([text] for text in texts))
        table = finish_self_play(examples, wrote, catalogue, draws)
        counts = statistics([(table, examples, wrote)], catalogue, 1)
        return {"kind": "negatives", "phase": "01/negatives", "sampler": "self_play", **counts}

    return build


def test_rows_that_lost_the_policys_own_answer_are_told_with_what_that_makes_of_the_method(record: Any) -> None:
    assert doubts.found([{"records": [record("H", "H", "H", "H")]}]) == []
    (told,) = doubts.found([{"records": [record("", "E", "H", "no title")]}])
    assert (told.phase, told.kind, told.share) == ("01/negatives", "negatives", 0.5)
    assert "50% of the rows lost the policy's own answer (25.0% of its answers are empty, 25.0% equal" in str(told)
    assert "random titles replace 50%, so the step learns as with --negatives self_play:0.50 random:0.50" in str(told)
    (told,) = doubts.found([{"records": [record("D", "H", "H", "H", equal_target="drop")]}])
    assert told.share == 0.25 and told.text.endswith("25% of the pairs are left out")


def test_samplers_that_ask_no_policy_are_not_doubted(record: Any) -> None:
    for sampler in ("random", "mixture", "self_hard"):
        assert doubts.found([{"records": [record("", "", "", "") | {"sampler": sampler}]}]) == []


def test_a_first_policy_that_popularity_beats_is_told() -> None:
    def phases(*found: float, policy: str = "00/sft") -> list[dict]:
        popular = {"kind": "baseline", "split": "test", "NDCG@1": 0.1, "NDCG@5": 0.2}
        tested = {"kind": "evaluation", "phase": "00/evaluate", "split": "test", "policy": policy, "NDCG@1": 0.0}
        return [{"records": [popular]}, {"records": [tested | {"NDCG@5": one} for one in found]}]

    (told,) = doubts.found(phases(0.125, 0.163))
    assert str(told).startswith(
        "00/evaluate: NDCG@5 is 0.163 after the first SFT, and Popular's 0.200: self-play starts"
    )
    assert not doubts.found(phases(0.1, 0.2)) and not doubts.found(phases(0.1, policy="base"))
    assert not doubts.found(phases(0.1)[:1]) and not doubts.found(phases(0.1)[1:])


def test_answers_that_are_empty_or_no_titles_are_counted(catalogue: Catalogue, examples: Any) -> None:
    texts, lists = [["A"], [" "], ["nothing"], []], [["A"], [], ["B"], []]
    table = prediction_table(examples, "00/sft", "greedy", texts, [[0.0]] * 4, lists)
    counts = doubts.count_answers("00/evaluate", "greedy", table, catalogue.titles, False)
    assert (counts["rows"], counts["empty"], counts["no_title"]) == (4, 2, 1)
    (told,) = doubts.found([{"records": [], "answers": [counts]}])
    assert told.share == 0.75 and "50.0% of the greedy answers are empty, 25.0% are no titles" in str(told)
    chosen = doubts.count_answers("00/evaluate", "greedy", table, catalogue.titles, True)
    assert (chosen["empty"], chosen["no_title"], chosen["grounded"]) == (2, 0, False)
    assert doubts.found([{"answers": [counts | {"empty": 0, "no_title": 0}]}]) == []


@pytest.mark.parametrize(("allowed", "read"), [(False, True), (True, True), (False, False)])
def test_a_run_stops_where_most_negatives_are_random(
    record: Any, tmp_path: Path, allowed: bool, read: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"records": [record("", "", "", "H")]}))
    done = [] if read else ["01/prefer"]
    phases = [Planned("01/negatives", "negatives", 4, 1, "parts")]
    phases.append(Planned("01/prefer", "prefer", 4, 1, "steps", needs=("01/negatives",)))
    work = SimpleNamespace(
        folder=lambda phase: tmp_path, write_metrics=list, done=done.__contains__,
        lease=SimpleNamespace(record_processes=lambda: None),
    )  # fmt: skip
    config = Config(train=TrainConfig(allow_random_negatives=allowed))
    session: Any = SimpleNamespace(
        work=work, config=config, phases=phases, _lock=threading.Lock(), _prune=len,
        tracker=SimpleNamespace(phase=len),
    )  # fmt: skip
    if allowed or not read:
        Session._finished(cast("Session", session), "01/negatives", True)
        assert "75% of the rows lost the policy's own answer" in caplog.text
    else:
        with pytest.raises(ValueError, match=r"^01/negatives: 75% of the rows lost .* add --allow-random-negatives"):
            Session._finished(cast("Session", session), "01/negatives", True)
