"""The blocks of FlexAttention's mask are those that PyTorch finds in the mask; few graphs serve all shapes."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rayrec.models.blocks import BLOCK
from rayrec.models.logprobs import Packed, pack


def packed(seed: int, examples: int, budget: int, longest: int = 200) -> Packed:
    """Examples of one to four answers, some of one token, which are no input."""
    draw = random.Random(seed)
    rows = [
        ([1] * draw.randint(1, longest), [[2] * draw.randint(1, 12) for _ in range(draw.randint(1, 4))])
        for _ in range(examples)
    ]
    return pack(rows, budget, flex=True)


def lists(mask: BlockMask) -> list[list[Any]]:
    """For each of the four kinds of lists, the blocks of every row and place."""
    found: Any = [
        (mask.kv_num_blocks, mask.kv_indices),
        (mask.full_kv_num_blocks, mask.full_kv_indices),
        (mask.q_num_blocks, mask.q_indices),
        (mask.full_q_num_blocks, mask.full_q_indices),
    ]
    return [
        [sorted(order[:count].tolist()) for count, order in zip(counts.flatten(), orders.flatten(0, -2), strict=True)]
        for counts, orders in found
    ]


@pytest.mark.parametrize(
    ("examples", "budget", "longest"), [(4, 0, 200), (9, 1024, 200), (3, 0, 700), (40, 512, 20), (1, 0, 1)]
)
def test_the_blocks_are_those_of_the_mask(examples: int, budget: int, longest: int) -> None:
    for seed in range(4):
        made = packed(seed, examples, budget, longest)
        assert made.ids_RT.shape[1] % BLOCK == 0 and made.blocks is not None
        own, wanted = made.block_mask(), dataclasses.replace(made, blocks=None).block_mask()
        assert own.shape == wanted.shape and lists(own) == lists(wanted)


def test_long_rows_of_many_examples_have_blocks_to_pass_over() -> None:
    made = packed(0, 24, 2048)
    assert made.blocks is not None
    mask = made.block_mask()
    causal = (made.ids_RT.shape[1] // BLOCK + 1) / (2 * made.ids_RT.shape[1] // BLOCK)
    assert 1 - mask.sparsity() / 100 < 0.5 * causal


def test_few_graphs_serve_all_shapes() -> None:
    """Dynamo alone, without a compiler; a CPU has no backward pass of it."""
    graphs = CompileCounter()
    torch._dynamo.reset()
    attend: Any = torch.compile(flex_attention, backend=graphs)

    def run(seed: int, examples: int, budget: int) -> None:
        made = packed(seed, examples, budget, 120)
        rows, length = made.ids_RT.shape
        query, key = torch.randn(rows, 4, length, 16), torch.randn(rows, 2, length, 16)
        with torch.no_grad():
            attend(query, key, key, block_mask=made.block_mask(), enable_gqa=True)

    shapes = [(4, 0), (3, 0), (1, 0), (6, 512), (12, 1024), (5, 0), (7, 0), (9, 640), (10, 768), (16, 896), (20, 2048)]
    for seed, (examples, budget) in enumerate(shapes):
        run(seed, examples, budget)
    torch._dynamo.reset()
    assert 1 <= graphs.frame_count <= 6  # of eleven shapes
