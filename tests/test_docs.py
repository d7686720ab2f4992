"""The documents: their commands are understood, their links lead somewhere, and their names exist."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from tests.faults.__main__ import kinds_of, options
from tests.faults.kinds import KINDS

ROOT = Path(__file__).parents[1]


def made(*words: str) -> list[list[str]]:
    """The commands that `make` would run, as words."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def test_make_faults_strikes_every_kind_and_a_number_if_asked() -> None:
    def struck(*words: str) -> list[str]:
        (line,) = [line for line in made("faults", *words) if "tests.faults" in line]
        return kinds_of(options().parse_args(line[line.index("tests.faults") + 1 :]))

    assert set(struck()) == set(KINDS)
    assert len(struck("FAULTS=2")) == 2
