"""What the plan of a run on GPUs tells, and the table of cards in the documents."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from rayrec.driver import checks, cost_model
from rayrec.driver.checks import Lengths
from rayrec.driver.cost_model import Work
from rayrec.driver.device import DEVICES, KERNELS
from rayrec.driver.prepare import make_embedder, settle_attention
from rayrec.lanes import Planned
from rayrec.methods import parse
from rayrec.models.shape import Shape
from tests.training.test_counts import LAYERS, MOST

ROOT = Path(__file__).parents[2]
TOKENS = Lengths(prompt=170, answer=10, longest=24, changed_titles=0)


def llama(folder: Path, **sizes: int) -> Shape:
    """A Llama of which only the settings are there; by default of Llama-3.2-1B's sizes."""
    found = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16} | sizes
    heads: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}
    LlamaConfig(**found, **heads).save_pretrained(folder)
    return Shape.of(str(folder))


def work(shape: Shape, *args: str) -> Work:
    given = ["--preset", "paper", "--dry-run", "--cluster", "8x8xH100", *args]
    return Work(checks.resolve(parse("", given), gpu=True), TOKENS, shape, 0, DEVICES["H100"], 8, (1, 1))


def test_a_layer_launches_as_many_kernels_as_are_counted() -> None:
    norms = 2 * (7 + 12)  # as in tests/models/test_varlen.py
    assert tuple(-(-sum(MOST[kind]) // LAYERS) - norms for kind in ("whole", "dropout")) == KERNELS


def test_a_micro_batch_is_launched_and_computed(tmp_path: Path) -> None:
    """Of 16 rows of a 1B model with adapters: about 60 ms, of which 23 are launched beside the others."""
    shape = llama(tmp_path)
    sft = Planned("01/sft", "sft", 16 * 128, 128, "steps", makes_policy=True)
    one = work(shape, "--batch", "16", "--prefer-batch", "16", "--micro-batch", "16", "--train-workers", "1")
    step = one.step(sft)
    assert step.launching == pytest.approx(16 * 141e-5) and 0.04 < step.computing < 0.08
    assert one.step_seconds(sft) == step.computing + step.beside
    whole = work(shape, "--batch", "16", "--prefer-batch", "16", "--train-workers", "1", "--lora-rank", "0")
    assert whole.step(sft).launching < step.launching  # no adapters
    # On 16 workers with one row each, launching is what a step takes.
    many = work(shape, "--batch", "16", "--prefer-batch", "16", "--micro-batch", "16", "--train-workers", "16")
    assert many.step_seconds(sft) == many.step(sft).launching + many.step(sft).beside


def test_gradients_of_a_whole_model_are_sent_in_float32(tmp_path: Path) -> None:
    """Round a ring twice with four bytes, and then the new weights with two."""
    shape = llama(tmp_path)
    of = work(shape, "--lora-rank", "0", "--zero-stage", "2", "--train-workers", "4")
    assert of._exchanged() == 3 * shape.parameters * (2 * 4 + 2)


@pytest.mark.parametrize(("workers", "told"), [("1", False), ("4", False), ("32", True)])
def test_trainers_that_gain_nothing_are_told(tmp_path: Path, workers: str, told: bool) -> None:
    of = work(llama(tmp_path), "--train-workers", workers)
    phases = [Planned("01/sft", "sft", 2048, 32, "steps", makes_policy=True)]
    found = cost_model.idle_trainers(of.config, phases, of)
    assert bool(found) == told
    if told:
        line = found["trainers"]
        assert "01/sft: a worker's 2 rows of a batch compute for" in line and "32 training workers are hardly" in line
        enough = int(line.split("Take --train-workers ")[1].split(",")[0])
        assert enough < 32 and checks.resolve(parse("", ["--preset", "paper", "--train-workers", str(enough)]))


def test_parts_at_once_read_the_weights_once(tmp_path: Path) -> None:
    of = work(llama(tmp_path), "--generators", "1", "--engine", "vllm")
    assert of.in_flight("greedy") == of.in_flight("sample") == 4 and of.in_flight("beams") == 1
    one, four = (of.part_seconds("greedy", 64, 1, n) for n in (1, 4))
    assert one < four < 2 * one
    assert of._asking("greedy", 64 * 8, 1) == pytest.approx(2 * four)


def test_a_language_model_that_would_fill_the_machine_is_no_embedder(tmp_path: Path) -> None:
    llama(tmp_path, hidden_size=16384, intermediate_size=65536, num_hidden_layers=60)
    config = parse("", ["--preset", "toy", "--embedder", "lm", "--embedder-path", str(tmp_path)])
    with pytest.raises(ValueError, match=r"in float32 on this machine's CPU, which has .* Take --embedder title"):
        make_embedder(config, None)  # pyright: ignore[reportArgumentType], it is refused before the data is read


@pytest.mark.parametrize(
    ("words", "on_gpus", "wanted"),
    [
        ([], True, "varlen"),
        ([], False, "sdpa"),
        (["--dtype", "float32"], True, "sdpa"),
        (["--attention", "sdpa"], True, "sdpa"),
        (["--attention", "varlen"], True, "varlen"),
    ],
)
def test_attention_is_that_of_the_device(tmp_path: Path, words: list[str], on_gpus: bool, wanted: str) -> None:
    llama(tmp_path)
    config = checks.resolve(parse("", ["--model", str(tmp_path), *words]), on_gpus)
    assert settle_attention(config, str(tmp_path), on_gpus).train.attention == wanted


def test_flash_attention_in_float32_is_refused() -> None:
    config = checks.resolve(parse("", ["--attention", "varlen", "--dtype", "float32"]), True)
    with pytest.raises(ValueError, match=r"and this plan is in float32. Take --attention sdpa, or --dtype bfloat16"):
        settle_attention(config, "", True)


def test_the_documents_have_the_table_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "jobs")
    lines = list(importlib.import_module("cards").table("H100"))
    assert len(lines) == 8 and "\n".join(lines) in (ROOT / "docs" / "cluster.md").read_text()
