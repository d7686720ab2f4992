"""Trackers: one run in each, which ends as the run of this process does."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrec.report.trackers import Tracker

PHASE = {"records": [{"kind": "sft", "phase": "00/sft", "iteration": 0, "HR@5": 0.5, "decode": "greedy"}]}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that stand-ins of MLflow and Weights & Biases get; neither is installed here."""
    sent: list[Any] = []
    session = SimpleNamespace(log=sent.append, finish=lambda exit_code: sent.append(exit_code))
    mlflow = SimpleNamespace(
        start_run=lambda run_name: SimpleNamespace(info=SimpleNamespace(run_id="r1")),
        log_params=sent.append,
        log_metric=lambda *args, **more: sent.append((*args, more)),
        end_run=sent.append,
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: session))
    return sent


@pytest.mark.parametrize(
    ("error", "ends"), [(None, ["FINISHED", 0]), (ValueError, ["FAILED", 1]), (KeyboardInterrupt, ["KILLED", 1])]
)
def test_every_tracker_ends_as_the_run_does(tmp_path: Path, sent: list[Any], error: Any, ends: list[Any]) -> None:
    tracker = Tracker(tmp_path, ("mlflow", "wandb"), {"data": {"seed": 0}})
    with suppress(ValueError, KeyboardInterrupt):
        try:
            tracker.phase(PHASE)
            if error:
                raise error
        finally:
            tracker.close()
    name = "sft/greedy/HR_at_5"
    # The run is named: a lane's thread has none of its own.
    assert sent[:3] == [{"data.seed": 0}, (name, 0.5, {"step": 0, "run_id": "r1"}), {name: 0.5, f"{name}/at": 0}]
    assert sent[3:] == ends


def test_a_tracker_that_cannot_end_keeps_nothing_open(
    tmp_path: Path, sent: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(status: str) -> None:
        raise ConnectionError("POST https://me:secret@server/api is gone")

    tracker = Tracker(tmp_path, ("mlflow", "wandb"), {})
    monkeypatch.setattr(sys.modules["mlflow"], "end_run", gone)
    tried: list[str] = []
    monkeypatch.setattr(sys.modules["mlflow"], "log_metric", lambda name, *given, **at: tried.append(name) or gone(""))
    tracker.phase(PHASE)
    tracker.phase(PHASE)
    assert sent[-1] == {"sft/greedy/HR_at_5": 0.5, "sft/greedy/HR_at_5/at": 0}  # the others go on
    tracker.close()
    assert sent[-1] == 0 and len(tried) == 1  # and end; a failed tracker gets nothing more
    said = [record.getMessage() for record in caplog.records]
    trouble = "where it is tracked: ConnectionError: POST https://***@server/api is gone"
    assert said == [f"the run could not be {what} {trouble}" for what in ("updated", "ended")]
    monkeypatch.setattr(sys.modules["mlflow"], "start_run", lambda run_name: gone(""))
    with pytest.raises(ValueError, match=r"--track mlflow: no run could be begun there: .* POST https://\*\*\*@server"):
        Tracker(tmp_path, ("mlflow",), {})
