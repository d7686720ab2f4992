"""The k best of each row, in an order that does not depend on the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def stable_topk(score: Tensor, k: int, largest: bool = True) -> Tensor:
    """Return the indices of the ``k`` best scores along the last dimension, best first, ties by index.

    [..., n] to [..., min(k, n)] int64; NaN counts as the worst score. ``torch.topk`` alone leaves the order of ties
    open.
    """
    import torch

    k = min(k, score.shape[-1])
    if k < 1:
        return score.new_empty((*score.shape[:-1], 0)).long()
    if score.is_floating_point():
        score = score.where(~score.isnan(), -torch.inf if largest else torch.inf)
    if score.dtype == torch.float32:
        # The bits of a float as an integer of the same order, with the index behind them: no two keys are equal.
        bits = (score + 0.0).view(torch.int32)  # -0.0 becomes 0.0
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        key = (~bits if largest else bits).long() << 32
        key |= torch.arange(score.shape[-1], device=score.device)
        return key.topk(k, dim=-1, largest=False).values & 0xFFFFFFFF
    kth = score.topk(k, dim=-1, largest=largest).values[..., -1:]
    better, tied = score > kth if largest else score < kth, score == kth
    kept = better | (tied & (tied.cumsum(-1) <= k - better.sum(-1, keepdim=True)))
    # `nonzero` would make a GPU wait for its count, which is k.
    places = torch.arange(score.shape[-1], device=score.device)
    index = places.where(kept, score.shape[-1]).topk(k, dim=-1, largest=False, sorted=True).values
    order = score.gather(-1, index).sort(dim=-1, descending=largest, stable=True).indices
    return index.gather(-1, order)
