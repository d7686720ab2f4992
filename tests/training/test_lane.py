"""The training lane arranges the rows of a phase beside the phase before it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pyarrow as pa
import pytest

from rayrec.data import preferences, schema
from rayrec.data.windows import cut
from rayrec.lanes import Policy
from rayrec.runs.run import Run
from rayrec.training.board import Phase
from rayrec.training.lane import TrainLane
from tests.training.test_pair_columns import NEVER_MET, interactions, lane_inputs, numbered


class Slow:
    """Training workers whose SFT lasts until ``end`` is set."""

    def __init__(self, end: threading.Event):
        self.end, self.done = end, list[str]()

    def run(self, phase: Phase, progress: Callable[..., None]) -> dict:
        assert phase.kind != "sft" or self.end.wait(60)
        Path(phase.out).mkdir()
        self.done.append(f"{phase.name} from {Path(phase.start).name}")
        return {"steps": [{"step": 1, "loss": 0.0, "lr": phase.lr}], "facts": {}, "proof": None}


def rejected_of(rows: pa.Table) -> pa.Table:
    """One title for each row, as a negatives phase leaves it."""
    made = [
        {"example_id": example_id, "policy": "00/sft", "k": 0, "sampler": "random", "text": NEVER_MET[0], "raw": ""}
        for example_id in rows["example_id"].to_pylist()
    ]
    return preferences.with_numbers(pa.Table.from_pylist(made, schema=schema.NEGATIVES), rows)


def test_rows_are_arranged_beside_the_phase_before(tmp_path: Path) -> None:
    rows = numbered(cut(interactions(), 10).splits["train"])
    shared, base = lane_inputs(tmp_path, rows, "--negatives", "random", "--prefer-batch", "4")
    end, written, run = threading.Event(), dict[str, threading.Event](), shared.run
    for name in ("01/sft", "01/prefer"):
        written[name] = threading.Event()

    def tokens(phase: Phase) -> None:
        assert Path(phase.rows).exists() and not phase.start  # its policy is still being trained
        written[phase.name].set()

    negatives: Future = Future()
    shared.made_by[negatives] = "01/negatives"
    group = Slow(end)
    lane = TrainLane(shared, lambda: group, base, tokens)
    try:
        last = lane.prefer(lane.sft(base, rows, 1), rows, negatives, None, 1)
        assert written["01/sft"].wait(60) and not written["01/prefer"].is_set()  # it needs the negatives
        negatives.set_result([rejected_of(rows)])
        assert written["01/prefer"].wait(60) and not run.done("01/sft") and not group.done
        end.set()
        assert last.result(60).version == "01/prefer"
    finally:
        end.set()
        lane.close()
    assert group.done == [f"01/sft from {tmp_path.name}", "01/prefer from policy"]


def test_a_finished_phase_is_not_arranged_again(tmp_path: Path) -> None:
    rows = numbered(cut(interactions(), 10).splits["train"])
    shared, base = lane_inputs(tmp_path, rows, "--prefer-batch", "4")
    end, asked = threading.Event(), list[str]()
    end.set()
    for _ in range(2):
        group = Slow(end)
        lane = TrainLane(shared, lambda group=group: group, base, lambda phase: asked.append(phase.name))
        try:
            policy: Policy = lane.sft(base, rows, 1).result(60)
        finally:
            lane.close()
    assert asked == ["01/sft"] and not group.done and policy.folder == shared.run.folder("01/sft") / "policy"


def test_an_error_of_the_rows_ends_their_phase(tmp_path: Path) -> None:
    rows = numbered(cut(interactions(), 10).splits["train"])
    shared, base = lane_inputs(tmp_path, rows)

    def tokens(phase: Phase) -> None:
        raise OSError(28, "No space left on device")

    lane = TrainLane(shared, lambda: pytest.fail("no worker is asked"), base, tokens)
    try:
        with pytest.raises(OSError, match="No space"):
            lane.sft(base, rows, 1).result(60)
    finally:
        lane.close()
    assert not Run(shared.run.storage, shared.run.root, shared.config, {"data": ""}).done("01/sft")
