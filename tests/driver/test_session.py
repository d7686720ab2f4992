"""The last words of a process that ends before its work is done."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors import SafetensorError

from rayrec.config import Config
from rayrec.driver.session import Session, ending
from rayrec.errors import Stopped


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside Ray, which another test may have loaded here, such an end ends the whole process at once."""
    monkeypatch.delitem(sys.modules, "ray", raising=False)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("Found this, wanted that."), 1, ["error: Found this, wanted that."]),
        (Stopped("01/sft: the board died"), 1, ["error: 01/sft: the board died", "The same command goes on"]),
        *(
            (OSError(number, os.strerror(number), "/runs/a"), 1, [f"{os.strerror(number)}: '/runs/a'", "goes on"])
            for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
        ),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1, ["No space left", "goes on"]),
        (KeyboardInterrupt(), 130, []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_our_mistake_is_told_in_words(
    error: BaseException, code: int, says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, ending():
        raise error
    told = capsys.readouterr().err
    assert ended.value.code == code and "Traceback" not in told and all(words in told for words in says)


def test_a_reader_of_the_output_may_leave(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, ending():
        raise SystemExit(1)  # as rich does at a broken pipe
    assert ended.value.code == 1 and capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "gone"), KeyError("x")])
def test_our_mistakes_are_traced(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, ending():
        raise error
    told = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" in told and "goes on" not in told


def test_samples_that_cannot_be_read_end_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = {"example_id": "a", "history": ["One"], "chosen": "Two", "rejected": ["Three"]}
    for t, content in {1: json.dumps([sample]).encode(), 2: b"\xff", 3: json.dumps([sample]).encode()}.items():
        (tmp_path / f"{t:02d}").mkdir()
        (tmp_path / f"{t:02d}" / "samples.json").write_bytes(content)
    (tmp_path / "trace.json").write_text('{"traceEvents": []}')
    (tmp_path / "metrics.jsonl").write_text("")
    finished: Any = SimpleNamespace(work=SimpleNamespace(root=tmp_path), config=Config())
    Session._report(cast("Session", finished))
    told = "".join(capsys.readouterr().out.split())
    assert "".join(f"{tmp_path}/02/samples.json: not readable".split()) in told and "leftout" in told
    assert "Iteration1" in told and "Iteration3" in told and "Three" in told
