"""SimPO: length-normalised rewards with a target margin and no reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rayrec.objectives.pairs import Pairs, mean_k, per_token, positive, softplus


@dataclass(frozen=True)
class Simpo:
    """softplus(−(β log π(y_w)/|y_w| − β log π(y_k)/|y_k| − γ)), mean over k (Meng et al. 2024; RecPO appendix D)."""

    beta: float = 1.0
    gamma: float = 2.0
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"Found gamma = {self.gamma}; it must be a finite number >= 0.")

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; 0 for an example without a rejected answer."""
        chosen_B, rejected_BK = per_token(pairs, pairs.chosen_B, pairs.rejected_BK)
        return mean_k(softplus(self.gamma - self.beta * (chosen_B[:, None] - rejected_BK)), pairs.mask_BK)
