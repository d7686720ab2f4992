"""The tables of metrics in docs/evaluation.md name every metric and its direction."""

from __future__ import annotations

import re
from pathlib import Path

from rayrec.metrics import METRICS


def test_the_documented_metrics_are_those_of_the_library() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\| (\S+?)(?:@k)? \| (higher|lower) \|", text, re.MULTILINE))
    assert found.pop("HR@1") == "higher"  # of a choice from candidates
    assert found == {name: {"up": "higher", "down": "lower"}[metric.better] for name, metric in METRICS.items()}
