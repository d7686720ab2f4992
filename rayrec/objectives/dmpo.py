"""DMPO: the chosen answer against the mean of the rejected ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rayrec.objectives.pairs import Pairs, has_k, log_ratios, mean_k, positive, softplus


@dataclass(frozen=True)
class Dmpo:
    """softplus(−(βΔ_w − (β/K) Σ_k Δ_k)) (Bai et al. 2024). The sum over k is a mean; SPRec's copy leaves out 1/K."""

    beta: float = 0.1
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; 0 for an example without a rejected answer."""
        delta_B, delta_BK = log_ratios(pairs)
        return softplus(-self.beta * (delta_B - mean_k(delta_BK, pairs.mask_BK))) * has_k(pairs)
