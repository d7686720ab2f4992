"""RosePO: DPO with labels smoothed by an oracle's doubt in each pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayrec.objectives.dpo import Dpo
from rayrec.objectives.pairs import Pairs, need, positive


def oracle_smoothing(score_chosen_B: Tensor, score_rejected_BK: Tensor) -> Tensor:
    """Return ε_BK = σ(s_k − s_w) cut to [0, 0.5), from the scores of an oracle such as SASRec (ours)."""
    below_half = torch.nextafter(score_rejected_BK.new_tensor(0.5), score_rejected_BK.new_tensor(0.0))
    return (score_rejected_BK - score_chosen_B[:, None]).sigmoid().minimum(below_half)


@dataclass(frozen=True)
class Rosepo:
    """(1 − ε) softplus(−βh_k) + ε softplus(βh_k), mean over k, ε = P_oracle(y_k ≻ y_w | x) (RosePO; form inferred)."""

    beta: float = 0.1
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; 0 for an example without a rejected answer."""
        need(pairs.smoothing_BK, "smoothing_BK")
        return Dpo(self.beta)(pairs)
