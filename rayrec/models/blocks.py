"""Which blocks of a packed mask FlexAttention computes, from the runs of tokens and without the mask itself.

Shapes: R rows, T tokens of a row, Q = T / BLOCK blocks, in both directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

#: Tokens of a block, in queries and in keys: FlexAttention's own.
BLOCK = 128


def listed(example_RT: Tensor, segment_RT: Tensor) -> Tensor:
    """Return the lists of blocks of rows in whole blocks, int32 in one tensor, for :func:`block_mask`.

    A token sees the earlier ones of its own run (a prompt, an answer, or padding), and an answer's token all of its
    prompt. So the number of pairs in a block follows from how much of each run lies in it.
    """
    pairs_RQQ = np.stack([_pairs(*one) for one in zip(example_RT.numpy(), segment_RT.numpy(), strict=True)])
    whole_RQQ = pairs_RQQ == BLOCK * BLOCK
    part_RQQ = (pairs_RQQ > 0) & ~whole_RQQ
    dense = np.stack([part_RQQ, whole_RQQ, part_RQQ.swapaxes(1, 2), whole_RQQ.swapaxes(1, 2)])
    counts, order = dense.sum(-1), np.argsort(~dense, axis=-1, kind="stable")  # the blocks of a list, then all others
    return torch.from_numpy(np.concatenate([counts.ravel(), order.ravel()]).astype(np.int32))


def _pairs(example_T: np.ndarray, segment_T: np.ndarray) -> np.ndarray:
    """The pairs of tokens that see each other in every block, [Q, Q]."""
    edges = np.flatnonzero(np.diff(example_T) | np.diff(segment_T)) + 1
    starts, ends = np.r_[0, edges], np.r_[edges, len(example_T)]
    blocks = BLOCK * np.arange(len(example_T) // BLOCK)
    inside = np.minimum(ends[:, None], blocks + BLOCK) - np.maximum(starts[:, None], blocks)
    inside = np.maximum(inside, 0)  # tokens of each run in each block
    pairs = np.tril(inside.T @ inside, -1) + np.diag((inside * (inside + 1) // 2).sum(0))
    answers = np.flatnonzero(segment_T[starts] > 0)
    prompts = {example: run for run, example in enumerate(example_T[starts]) if segment_T[starts[run]] == 0}
    return pairs + inside[answers].T @ inside[[prompts[example_T[starts[run]]] for run in answers]]


def block_mask(lists: Tensor, rows: int, length: int, sees: Any) -> BlockMask:
    """Return FlexAttention's mask of rows of ``length`` tokens; ``sees`` decides where a block is not whole."""
    Q = length // BLOCK
    counts, order = lists.split([4 * rows * Q, 4 * rows * Q * Q])
    (part, whole, part_back, whole_back) = counts.view(4, rows, 1, Q)
    (parts, wholes, parts_back, wholes_back) = order.view(4, rows, 1, Q, Q)
    blocks = part, parts, whole, wholes, part_back, parts_back, whole_back, wholes_back
    return BlockMask((length, length), *blocks, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)
