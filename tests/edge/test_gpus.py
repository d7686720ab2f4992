"""GPUs of trainers and generators in both placements, on a Ray with GPUs that are there in name only."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from tests.edge.conftest import ROOT


def placed(nodes: list[int], plans: list[str]) -> list[dict[str, Any]]:
    """What gpus_program.py finds of ``plans`` on nodes with so many GPUs."""
    command = [sys.executable, "-m", "tests.edge.gpus_program", *map(str, nodes)]
    done = subprocess.run(
        command, cwd=ROOT, input="\n".join(plans), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])


def check(plan: str, found: dict[str, Any]) -> None:
    """Every actor has its cards, no two trainers and no two generators one, and only `shared` has cards in common."""
    placement, trainers, generators, cards = plan.split()
    training = Counter(tuple(card) for some in found["trainers"] for card in some)
    generating = Counter(tuple(card) for some in found["generators"] for card in some)
    assert len(training) == int(trainers) and set(training.values()) == {1}, (plan, found)
    assert len(generating) == int(generators) * int(cards) and set(generating.values()) == {1}, (plan, found)
    assert (generating.keys() <= training.keys()) if placement == "shared" else not (training & generating), plan


def test_no_two_trainers_have_one_card_and_shared_pairs_each_generator_with_one() -> None:
    plans = ["shared 1 1 1", "shared 4 4 1", "shared 4 2 1", "apart 2 2 1", "apart 2 1 2"]
    for plan, found in zip(plans, placed([4], plans), strict=True):
        check(plan, found)


@pytest.mark.slow
def test_the_same_over_two_nodes_and_the_cards_of_a_generator_lie_on_one() -> None:
    plans = ["shared 4 4 1", "shared 5 5 1", "shared 3 3 1", "apart 1 2 2"]
    for plan, found in zip(plans, placed([2, 3], plans), strict=True):
        check(plan, found)
        assert all(len({node for node, _ in cards}) == 1 for cards in found["generators"]), (plan, found)
