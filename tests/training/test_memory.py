"""The memory of a training worker: what a pass keeps, counted, and how rows are cut into passes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayrec.config import Config, TrainConfig
from rayrec.models.logprobs import PackedLM, pack
from rayrec.models.policy import add_lora, load_base, set_lora_dropout
from rayrec.models.settings import ModelConfig
from rayrec.models.shape import Shape
from rayrec.models.tiny import make_tiny
from rayrec.training.memory import GIB, Memory, cuts

SHAPE = Shape(
    blocks=10**6, words=10**6, tied=True, layers=4, hidden=256, queries=256, kv=2048, last_mlp=3 * 256 * 768, adapters=0
)


def memory(shape: Shape = SHAPE, rank: int = 0, dropout: float = 0.0, gpu: bool = False, **train: Any) -> Memory:
    return Memory(
        shape, Config(model=ModelConfig(lora_rank=rank, lora_dropout=dropout), train=TrainConfig(**train)), gpu
    )


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize(("rank", "dropout"), [(0, 0.0), (8, 0.0), (8, 0.05)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pass_keeps_as_many_bytes_as_told(
    tmp_path: Path, dtype: Any, rank: int, dropout: float, checkpointing: bool
) -> None:
    sizes = ModelConfig(tiny_hidden=128, tiny_layers=6, tiny_vocab=512)
    make_tiny(["Heat (1995)"], sizes, tmp_path, 0)
    lm = load_base(tmp_path, dtype)
    if rank:
        lm = add_lora(lm, rank, 32, dropout)
        set_lora_dropout(lm, dropout)
    known, kept = {p.untyped_storage().data_ptr() for p in lm.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    packed = pack([(list(range(60)), [list(range(10))] * 2)] * 4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        PackedLM(lm.train(), checkpointing)(packed)
    found = sum(one.nbytes() for one in kept.values()) - 4 * 20 * 512 * 4  # the logits' own
    shape, tokens = Shape.of(str(tmp_path)), packed.ids_RT.numel()
    told = tokens * memory(shape, rank, dropout, dtype=dtype, activation_checkpointing=checkpointing).token()
    if checkpointing:  # the layer that is computed again is not yet among what was kept
        one = [memory(dataclasses.replace(shape, layers=n), rank, dropout, dtype=dtype).token() for n in (2, 3)]
        told -= 2 * tokens * (one[1] - one[0])
    assert told == pytest.approx(found, rel=0.15)


@given(
    st.lists(st.integers(20, 400), min_size=1, max_size=40),
    st.integers(1, 16),
    st.sampled_from([0.001, 0.01, 0.1]),
)
def test_passes_fit_and_are_no_more_than_they_must(lengths: list[int], most: int, budget: float) -> None:
    rows = [(n, 10) for n in sorted(lengths)]
    of = memory(micro_batch=most, pass_memory=budget)

    def fits(parts: int) -> bool:
        found = [rows[a:b] for a, b in cuts(len(rows), parts)]
        return all(of.pass_bytes(one) <= budget * GIB for one in found)

    parts = of.passes(rows)
    sizes = [b - a for a, b in cuts(len(rows), parts)]
    assert sum(sizes) == len(rows) and min(sizes) >= 1 and max(sizes) <= most
    assert fits(parts) or parts == len(rows)
    assert not any(fits(fewer) for fewer in range(-(-len(rows) // most), parts))


def test_cuts_are_even() -> None:
    """8 rows in 3 passes: ends at 2.67 and 5.33, rounded."""
    assert cuts(8, 3) == [(0, 3), (3, 5), (5, 8)]
    for rows, parts in itertools.product(range(1, 20), range(1, 20)):
        if parts <= rows:
            sizes = [b - a for a, b in cuts(rows, parts)]
            assert sum(sizes) == rows and max(sizes) - min(sizes) <= 1


def test_a_row_that_does_not_fit_is_alone() -> None:
    of = memory(pass_memory=1e-6)
    assert of.passes([(100, 10)] * 5) == 5


def test_more_memory_takes_more_rows() -> None:
    found = [memory(pass_memory=g, micro_batch=64).largest(200, 20, 64) for g in (0.02, 0.1, 1.0)]
    assert [rows for rows, _ in found] == sorted({rows for rows, _ in found})
    assert found[-1][0] == memory(micro_batch=64).largest(200, 20, 64)[0]  # 1 GiB on CPUs
