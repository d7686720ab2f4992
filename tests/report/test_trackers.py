"""Trackers: one run in each, whose curves grow while a phase runs, and which ends and resumes as the run does."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrec.report import trackers
from rayrec.report.trackers import Tracker

PLAN = [("00/sft", "steps", 4), ("00/evaluate", "parts", 3), ("01/sft", "steps", 2), ("01/prefer", "steps", 6)]
SETTINGS = {"data": {"seed": 0}}


def evaluation(iteration: int, **numbers: float) -> dict[str, Any]:
    record = {"kind": "evaluation", "phase": f"{iteration:02d}/evaluate", "iteration": iteration, "split": "test"}
    return {"records": [record | {"decode": "greedy", "N": 200} | numbers]}


def training(phase: str, *losses: float, **more: float) -> dict[str, Any]:
    steps = [{"step": at, "loss": loss, **more} for at, loss in enumerate(losses, 1)]
    return {"records": [{"kind": phase[3:], "phase": phase, "iteration": int(phase[:2]), "rows": 8}], "steps": steps}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that stand-ins of MLflow and Weights & Biases get; neither is installed here."""
    sent: list[Any] = []

    def start(**how: Any) -> Any:
        sent.append(how)
        return SimpleNamespace(info=SimpleNamespace(run_id=how["run_id"] or "r1"))

    def log(values: dict[str, float]) -> None:
        sent.append(values)

    session = SimpleNamespace(
        log=log,
        finish=lambda exit_code: sent.append(exit_code),
        define_metric=lambda name, step_metric: sent.append((name, step_metric)),
    )
    mlflow = SimpleNamespace(
        start_run=start,
        log_params=sent.append,
        log_metrics=lambda values, step, run_id: sent.append((values, step, run_id)),
        end_run=sent.append,
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **how: sent.append(how) or session))
    return sent


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of every tag in the folder's TensorBoard files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return {tag: [(one.step, round(one.value, 4)) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_a_running_phase_has_points_on_one_axis_over_phases(tmp_path: Path) -> None:
    times = [0.0]
    tracker = Tracker(tmp_path, (), SETTINGS, PLAN, clock=lambda: times[-1])
    for seconds, step in ((0.5, 1), (1.0, 2), (3.0, 3), (3.1, 4)):
        times.append(seconds)
        tracker.live("00/sft", step, loss=step / 10, memory=2**30 * step, steps=4)
    assert curves(tmp_path)["sft/loss"] == [(1, 0.1), (3, 0.3)]  # read while the phase runs
    tracker.phase(training("00/sft", 0.1, 0.2, 0.3, 0.4, lr=1e-3))
    for seconds, step in ((10.0, 1), (20.0, 1), (35.0, 2)):
        times.append(seconds)
        tracker.live("01/sft", step, loss=step / 20)
    tracker.phase(training("01/sft", 0.05, 0.1, lr=2e-3))
    for seconds, part in ((12.0, 1), (16.0, 3)):
        times.append(seconds)
        tracker.live("00/evaluate", part)
    tracker.close()
    found = curves(tmp_path)
    assert found["sft/loss"] == [(1, 0.1), (3, 0.3), (4, 0.4), (5, 0.05), (6, 0.1)]
    assert found["throughput/sft_steps_per_s"] == [(3, 0.8), (6, 0.04)]
    assert found["memory/trainer_gib"] == [(1, 1.0), (3, 3.0)]
    assert found["sft/lr"] == [(1, 0.001), (4, 0.001), (5, 0.002), (6, 0.002)]
    assert "throughput/evaluate_parts_per_s" not in found  # one point is no curve


def test_points_come_at_least_every_half_minute() -> None:
    assert trackers.LIVE < 30


def test_what_never_changes_is_no_curve(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, (), SETTINGS, PLAN)
    for iteration, hits in enumerate((0.0, 0.0, 0.25)):
        tracker.phase(evaluation(iteration, **{"HR@5": hits, "NDCG@5": 0.5, "empty": 0, "filled@5": 1.0}))
    tracker.phase(
        {"records": [{"kind": "baseline", "model": "Popular", "phase": "00/baseline", "iteration": 0, "x": 1}]}
    )
    tracker.phase(training("01/prefer", 0.7, 0.6, lr=1e-4))
    tracker.close()
    found = curves(tmp_path)
    assert {*found} == {"evaluation/test/greedy/HR_at_5", "evaluation/test/greedy/NDCG_at_5", "prefer/loss"}
    assert found["evaluation/test/greedy/HR_at_5"] == [(0, 0.0), (1, 0.0), (2, 0.25)]
    assert found["prefer/loss"] == [(7, 0.7), (8, 0.6)]


@pytest.mark.parametrize(
    ("error", "ends"), [(None, ["FINISHED", 0]), (ValueError, ["FAILED", 1]), (KeyboardInterrupt, ["KILLED", 1])]
)
def test_every_tracker_ends_as_the_run_does(tmp_path: Path, sent: list[Any], error: Any, ends: list[Any]) -> None:
    tracker = Tracker(tmp_path, ("mlflow", "wandb"), SETTINGS)
    del sent[:]
    with suppress(ValueError, KeyboardInterrupt):
        try:
            tracker.phase(evaluation(1, **{"HR@5": 0.5}))
            if error:
                raise error
        finally:
            tracker.close()
    name = "evaluation/test/greedy/HR_at_5"
    # MLflow's run is named: a lane's thread has none of its own.
    assert sent[:3] == [({name: 0.5}, 1, "r1"), (name, "iteration"), {name: 0.5, "iteration": 1}]
    assert sent[3:] == ends


def test_a_resumed_run_goes_on_in_the_same_runs(
    tmp_path: Path, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    Tracker(tmp_path, ("mlflow", "wandb"), SETTINGS).close()
    begun, params, first, *_ = sent
    assert (begun, params) == ({"run_id": None, "run_name": tmp_path.name}, {"data.seed": 0})
    assert (first["project"], first["name"], first["resume"]) == ("rayrec", tmp_path.name, "allow")
    assert json.loads((tmp_path / trackers.RUNS).read_text()) == {"mlflow": "r1", "wandb": first["id"]}
    del sent[:]
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    Tracker(tmp_path, ("mlflow", "wandb"), SETTINGS).close()
    again, second, *_ = sent  # parameters are not sent again: MLflow refuses to change one
    assert again == {"run_id": "r1", "run_name": None}
    assert (second["project"], second["id"]) == ("ours", first["id"])


def test_a_run_that_is_gone_from_a_tracker_is_refused_with_the_way_out(
    tmp_path: Path, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Tracker(tmp_path, ("mlflow",), SETTINGS).close()

    def gone(**how: Any) -> None:
        raise ConnectionError("no run r1")

    monkeypatch.setattr(sys.modules["mlflow"], "start_run", gone)
    with pytest.raises(ValueError, match=r"no run could be resumed there: .* Remove .*trackers.json to begin another"):
        Tracker(tmp_path, ("mlflow",), SETTINGS)
    (tmp_path / trackers.RUNS).unlink()
    with pytest.raises(ValueError, match=r"no run could be begun there: ConnectionError: no run r1$"):
        Tracker(tmp_path, ("mlflow",), SETTINGS)


def test_a_tracker_that_cannot_end_keeps_nothing_open(
    tmp_path: Path, sent: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: dict[str, int] = defaultdict(int)

    def gone(*given: Any, **more: Any) -> None:
        tried["log"] += "step" in more
        raise ConnectionError("POST https://me:secret@server/api is gone")

    tracker = Tracker(tmp_path, ("mlflow", "wandb"), {})
    for name in ("log_metrics", "end_run"):
        monkeypatch.setattr(sys.modules["mlflow"], name, gone)
    tracker.phase(evaluation(0, **{"HR@5": 0.5}))
    tracker.phase(evaluation(1, **{"HR@5": 0.6}))
    assert sent[-1] == {"evaluation/test/greedy/HR_at_5": 0.6, "iteration": 1}  # the others go on
    tracker.close()
    assert sent[-1] == 0 and tried["log"] == 1  # and end; a failed tracker gets nothing more
    said = [record.getMessage() for record in caplog.records]
    trouble = "where it is tracked: ConnectionError: POST https://***@server/api is gone"
    assert said == [f"the run could not be {what} {trouble}" for what in ("updated", "ended")]
