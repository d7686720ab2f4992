"""DPO: each rejected answer is one pair with the chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rayrec.objectives.pairs import Pairs, mean_k, positive, preference_logits, smooth_nll


@dataclass(frozen=True)
class Dpo:
    """softplus(−(βh_k − γ_k)), mean over k (Rafailov et al. 2023; S-DPO eq. 7). Margins and smoothing are honoured."""

    beta: float = 0.1
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; 0 for an example without a rejected answer."""
        return mean_k(smooth_nll(preference_logits(pairs, self.beta), pairs.smoothing_BK), pairs.mask_BK)
