"""The memory of a machine with several training processes of whole models, and sums of gradients in bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.runs.manifest import read_json
from tests.edge.test_worker import start

TITLES = ["Red River", "Blue House", "The Long Road"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """What host_program.py finds with two processes, by their ranks."""
    root = tmp_path_factory.mktemp("host")
    make_tiny(TITLES, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), root / "small", 0)
    for seed, name in enumerate(("big", "policy")):
        make_tiny(TITLES, ModelConfig(tiny_hidden=1024, tiny_layers=4, tiny_vocab=300), root / name, seed)
    start("host_program", root, 2)
    return root, [read_json(root / f"host{rank}.json") for rank in range(2)]


def test_one_process_of_a_machine_reads_a_whole_model_for_all(found: tuple[Path, list[dict]]) -> None:
    root, made = found
    size = (root / "big" / "model.safetensors").stat().st_size
    assert size > 150e6
    first, second = (one["loads"] for one in made)
    assert [(name, total) for name, _, total in first] == [(name, total) for name, _, total in second]
    assert first[0][2] == first[2][2] != first[1][2]
    for name, grown, _ in second:
        assert grown < 0.25 * size, (name, grown)
    for name, grown, _ in first:
        assert grown < 1.3 * size, (name, grown)


def test_gradients_of_whole_models_in_bfloat16_are_added_in_float32(found: tuple[Path, list[dict]]) -> None:
    for one in found[1]:
        assert one["added"] == {"2": pytest.approx(1, abs=1e-4), "3": pytest.approx(1, abs=1e-4)}
