"""KTO: every answer is judged alone against a shared reference point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rayrec.objectives.pairs import Pairs, log_ratios, mask_out, need, positive


def reference_point(log_ratios: float, count: float) -> float:
    """Return z = max(0, mean_i log π_θ/π_ref(y_{i+1}|x_i)) from the sum and the number of a group's log-ratios.

    The group, in which each example has its neighbour's chosen answer, must not depend on the number of workers. A
    group of one has no neighbours, and z = 0.
    """
    return max(0.0, log_ratios / count) if count > 1 else 0.0


@dataclass(frozen=True)
class Kto:
    """[λ_D(1 − σ(β(Δ_w − z))) + λ_U Σ_k(1 − σ(β(z − Δ_k)))]/(1 + K) (Ethayarajh et al. 2024 eq. 7 to 9); λ_U 1/K."""

    beta: float = 0.1
    lambda_d: float = 1.0
    lambda_u: float | None = None
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        positive("lambda_d", self.lambda_d)
        if self.lambda_u is not None:
            positive("lambda_u", self.lambda_u)

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; the chosen term alone for an example without a rejected answer."""
        delta_B, delta_BK = log_ratios(pairs)
        z_B = need(pairs.baseline_B, "baseline_B").detach()
        k_B = pairs.mask_BK.sum(1).to(delta_B.dtype)
        # 1 − σ(u) is computed as σ(−u), which keeps its digits where σ(u) is near 1.
        chosen_B = self.lambda_d * (self.beta * (z_B - delta_B)).sigmoid()
        rejected_BK = mask_out((self.beta * (delta_BK - z_B[:, None])).sigmoid(), pairs.mask_BK)
        lambda_u = 1 / k_B.clamp(min=1) if self.lambda_u is None else self.lambda_u
        return (chosen_B + lambda_u * rejected_BK.sum(1)) / (1 + k_B)
