"""DynamicPO: only the rejected answers at the border, each with an inverse temperature of its own."""

import math
from dataclasses import dataclass
from typing import Literal

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, log_ratios, logsumexp_k, mask_out, mean_k, softplus


@dataclass(frozen=True)
class Dynamicpo(Objective):
    """softplus(-mean_{k in N} β_k(Δ_w - Δ_k)), or over `sdpo` softplus(logsumexp_{k in N} β_k(Δ_k - Δ_w)).

    s are the log π_θ of the answers. N are the rejected ones with s_k >= s_w, else the top cluster of a 3-means of s_k.
    β_k = β(1 + ½ tanh((a - b - m)/(|a| + |b|))), a = s_w - s_k, b = s_k less the mean s of those outside N (of N where
    none is); N and β_k have no gradient. The clusters are the best cuts of the sorted s (ours).
    """

    beta: float = setting(1.0, BETA)
    shift: float = setting(6.0, "m, by which a rejected answer should stay behind to be pushed harder, >= 0", zero=True)
    inner: Literal["dmpo", "sdpo"] = setting("dmpo", "Form of the loss over the rejected answers that count")

    def __call__(self, pairs: Pairs) -> Tensor:
        border_BK = self.border(pairs)
        beta_BK = self.betas(pairs, border_BK)
        delta_B, delta_BK = log_ratios(pairs)
        gap_BK = beta_BK * (delta_B[:, None] - delta_BK)
        if self.inner == "dmpo":
            return softplus(-mean_k(gap_BK, border_BK)) * border_BK.any(1)
        has_k = border_BK.any(1)
        return softplus(mask_out(logsumexp_k(-gap_BK, border_BK), has_k)) * has_k

    def border(self, pairs: Pairs) -> Tensor:
        """Return N as a mask [B, K]."""
        score_BK = mask_out(pairs.rejected_BK.detach(), pairs.mask_BK, -math.inf)
        if not score_BK.shape[1]:
            return pairs.mask_BK
        above_BK = pairs.mask_BK & (score_BK >= pairs.chosen_B.detach()[:, None])
        least_B1 = _top_cluster(score_BK, pairs.mask_BK.sum(1))
        return above_BK.where(above_BK.any(1, keepdim=True), pairs.mask_BK & (score_BK >= least_B1))

    def betas(self, pairs: Pairs, border_BK: Tensor) -> Tensor:
        """Return β_k as [B, K]."""
        score_BK, others_BK = mask_out(pairs.rejected_BK.detach(), pairs.mask_BK), pairs.mask_BK & ~border_BK
        others_BK = others_BK.where(others_BK.any(1, keepdim=True), border_BK)
        a_BK = pairs.chosen_B.detach()[:, None] - score_BK
        b_BK = score_BK - mean_k(score_BK, others_BK)[:, None]
        sum_BK = a_BK.abs() + b_BK.abs()
        # Where both are 0 the quotient's limit is -inf: β/2.
        turn_BK = ((a_BK - b_BK - self.shift) / sum_BK.where(sum_BK > 0, 1.0)).tanh().where(sum_BK > 0, -1.0)
        return self.beta * (1 + turn_BK / 2)


def _top_cluster(score_BK: Tensor, count_B: Tensor) -> Tensor:
    """Return the least score of the top cluster of the best 3-means of each row, [B, 1]; absent scores are -inf.

    Up to three scores are clusters of their own. Of equally good cuts the one with the smallest top cluster is taken.
    """
    import itertools

    import torch

    down_BK = score_BK.double().sort(1, descending=True).values
    value_BK = down_BK.where(down_BK > -torch.inf, 0.0)
    B, K = value_BK.shape
    sums = [torch.cat([x.new_zeros(B, 1), x.cumsum(1)], 1) for x in (value_BK, value_BK.square())]

    def spread(begin: Tensor, end: Tensor) -> Tensor:
        """Σ (s - mean)² of the places ``begin`` to ``end`` - 1, both [B, C]."""
        one, two = (x.gather(1, end) - x.gather(1, begin) for x in sums)
        return two - one.square() / (end - begin).clamp(min=1)

    size_B1 = torch.ones(B, 1, dtype=torch.long, device=score_BK.device)
    if K > 3:
        cuts_2C = torch.tensor([*itertools.combinations(range(1, K), 2)], device=score_BK.device).T
        first_BC, second_BC = (cut_C.expand(B, -1) for cut_C in cuts_2C)
        end_BC = count_B[:, None].expand_as(first_BC)
        whole_BC = spread(torch.zeros_like(first_BC), first_BC) + spread(first_BC, second_BC)
        whole_BC = whole_BC + spread(second_BC, end_BC.maximum(second_BC))
        best_B = whole_BC.where(second_BC < end_BC, torch.inf).argmin(1)
        size_B1 = cuts_2C[0][best_B][:, None].where(count_B[:, None] > 3, size_B1)
    return down_BK.gather(1, size_B1 - 1).to(score_BK.dtype)
