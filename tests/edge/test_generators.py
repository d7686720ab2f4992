"""The pool of generators on a real Ray: what counts as a death, and what happens to actors that die or hang."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.edge.conftest import ROOT
from tests.edge.generators_program import TITLES


def test_an_actor_whose_engine_is_dead_or_that_hangs_is_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.edge.generators_program", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    out = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])
    # Every part once, in whatever order, with the texts of its tokens and the seed that it names.
    assert [number for number, _ in out["made"]] == [0, 1, 2, 3, 4]
    for number, answers in out["made"]:
        assert [[text for _, text, *_ in one] for one in answers] == [[title] for title in TITLES]
        assert all(logprob == -number for one in answers for _, _, logprob, _ in one)
    replaced = re.findall(r"generator \d (.* in 01/negatives part \d) \(.*it is replaced", done.stdout)
    assert sorted(replaced) == [
        "died in 01/negatives part 1",
        "died in 01/negatives part 3",
        "gave no answer for 4 s in 01/negatives part 2",
    ]
    assert "has been in 01/negatives part 2 for 1 s" in done.stdout.replace("for 2 s", "for 1 s")
    # The pool had nothing to do, and its GPUs are shared with training; then it had.
    assert out["slept"] and out["woken"]
    # An engine that does not leave its GPU ends the run before training takes it.
    assert out["asked"] == "" and "memory that did not come back" in out["stuck"]
    # A part that cannot be answered is no death, and fails later requests too.
    assert out["then"] == out["later"] and out["then"].startswith("RayTaskError(ArithmeticError)")
    # Answers that nobody takes delay their own phase alone; 64 wait, and one is at each of two generators.
    assert 65 <= out["given"] <= 68 and out["urgent"] == 9 and out["taken"] == 300
    # Three parts are at an engine at once, of one policy; those at an actor that died are made again.
    assert out["batched"] == [[i, [-float(i + 10)] * len(TITLES)] for i in range(12)] and out["mixed"] == [*range(6)]
    assert out["inside"] == ["inside-1", "inside-2", "inside-3"]
    died = r"generator \d died in batched part \d+( and \d more)? \(1 of 3 allowed\): it is replaced"
    assert re.search(died, done.stdout)
    assert out["full"] == "OSError: [Errno 28] No space left on device"
    # An error that would come again is reported once, in one line, and is no death.
    assert out["refused"] == "ValueError: no such model. Take another."
    vast = r"ValueError: generator \d ran out of memory in vast part 0: .*allocate 4503599627370496 bytes.*"
    assert re.fullmatch(
        vast + r"and the generator held \d\.\d GB at its last answer\. Lower --beam-width, .*", out["vast"]
    )
    assert "died in refused" not in done.stdout and "died in vast" not in done.stdout
    # A part that kills every actor ends the run, whichever slots it comes to.
    deadly = re.findall(r"died in deadly part 0 \((\d) of 3 allowed\): it is replaced", done.stdout)
    assert deadly == ["1", "2", "3"]
    assert out["deadly"].split("(")[0].endswith("died in deadly part 0 ") and "(4 of 3 allowed)" in out["deadly"]
    assert out["deaths"] == [True, True, True, True, False, False]
