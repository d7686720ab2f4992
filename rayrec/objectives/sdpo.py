"""S-DPO: the chosen answer against all rejected ones at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayrec.objectives.pairs import Pairs, has_k, logsumexp_k, mean_k, positive, preference_logits, smooth_nll


@dataclass(frozen=True)
class Sdpo:
    """softplus(logsumexp_k [β(Δ_k − Δ_w) + γ_k]) (S-DPO eq. 11). Margins are honoured.

    Smoothing has one ε per example, the mean over k (ours; K = 1 is RosePO's).
    """

    beta: float = 1.0
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; 0 for an example without a rejected answer."""
        logit_B = -logsumexp_k(-preference_logits(pairs, self.beta), pairs.mask_BK)
        smoothing_B = None if pairs.smoothing_BK is None else mean_k(pairs.smoothing_BK, pairs.mask_BK)
        return smooth_nll(torch.where(has_k(pairs), logit_B, 0), smoothing_B) * has_k(pairs)
