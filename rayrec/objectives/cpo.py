"""CPO: a contrast without a reference, held in place by the likelihood of the chosen answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rayrec.objectives.pairs import Pairs, mask_out, mean_k, need, positive, softplus


@dataclass(frozen=True)
class Cpo:
    """softplus(−β(log π(y_w) − log π(y_k))), mean over k, − α log π(y_w)/|y_w| once (Xu et al. 2024 eq. 3)."""

    beta: float = 0.1
    alpha: float = 1.0
    needs_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"Found alpha = {self.alpha}; it must be a finite number >= 0.")

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; the likelihood term alone for an example without a rejected answer."""
        gap_BK = pairs.chosen_B[:, None] - mask_out(pairs.rejected_BK, pairs.mask_BK)
        nll_B = -pairs.chosen_B / need(pairs.chosen_length_B, "chosen_length_B")
        return mean_k(softplus(-self.beta * gap_BK), pairs.mask_BK) + self.alpha * nll_B
