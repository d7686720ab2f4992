"""A loss that a script adds: its flags, and what is refused before a run starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from rayrec.driver.checks import check_objective
from rayrec.objectives import OBJECTIVES, Objective, Pairs
from rayrec.objectives.settings import LossConfig, resolve
from rayrec.training.pair_columns import COLUMNS, Column

SCRIPT = """
import sys
from dataclasses import dataclass
from rayrec.objectives import OBJECTIVES, Objective, setting

@dataclass(frozen=True)
class Mine(Objective):
    room: float = setting(1.0, "Smallest gap")
    def __call__(self, pairs):
        return pairs.chosen_B

OBJECTIVES["mine"] = Mine
from rayrec.methods import parse
from rayrec.objectives.settings import make_objective
print(make_objective(parse("", ["--objective", "mine", "--room", "2"]).loss), "torch" in sys.modules)
"""


def test_a_row_in_objectives_is_a_choice_with_its_flags_and_torch_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Mine(room=2.0) False\n"), done.stderr


class Bare(Objective):
    """Reads a column that nothing fills, and compares three rows."""

    reads = frozenset({"letters"})
    least_batch = 3

    def __call__(self, pairs: Pairs):
        return pairs.chosen_B


def test_what_a_run_could_not_do_is_refused_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "bare", Bare)
    loss = resolve(LossConfig(objective="bare"))
    with pytest.raises(ValueError, match="reads letters, and columns are scores"):
        check_objective(loss, 8)
    monkeypatch.setitem(COLUMNS, "letters", Column(lambda rows, known: rows))
    check_objective(loss, 3)
    with pytest.raises(ValueError, match=r"--prefer-batch 2 has 2\. Take at least 3"):
        check_objective(loss, 2)
    with pytest.raises(ValueError, match="bare has no --beta; it has no settings"):
        resolve(LossConfig(objective="bare", beta=1.0))
    with pytest.raises(ValueError, match="bare cannot smooth labels"):
        resolve(LossConfig(objective="bare", smoothing="sasrec"))
