"""Silence is logged at doubling intervals, and has an end."""

from __future__ import annotations

import logging

import pytest

from rayrec.cluster.watchdog import Watchdog


def test_silence_is_logged_at_doubling_intervals_until_patience_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    dog = Watchdog("generator 3: no answer", patience=20.0, first_warning=2.0)
    over = []
    for second in range(1, 23):
        now[0] = 100.0 + second
        over.append(dog.check())
    assert over == [False] * 20 + [True] * 2
    # The first moments that are past 2, 4, 8 and 16 seconds.
    assert [f"for {s} s; given up after 20 s" in m for s, m in zip((3, 5, 9, 17), caplog.messages, strict=True)] == [
        True
    ] * 4

    caplog.clear()
    dog.beat()  # what was silent is heard again: the count, and the warnings, start anew
    dog.patience = 4.0
    now[0] += 3
    assert (dog.silent, dog.check(), len(caplog.messages)) == (3.0, False, 1)
    now[0] += 2
    assert dog.check()
