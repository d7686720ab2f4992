"""DMPO: the chosen answer against the mean of the rejected ones."""

from dataclasses import dataclass

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, log_ratios, mean_k, softplus


@dataclass(frozen=True)
class Dmpo(Objective):
    """softplus(−(βΔ_w − (β/K) Σ_k Δ_k)) (Bai et al. 2024). The sum over k is a mean; SPRec's copy leaves out 1/K."""

    beta: float = setting(0.1, BETA)

    def __call__(self, pairs: Pairs) -> Tensor:
        delta_B, delta_BK = log_ratios(pairs)
        return softplus(-self.beta * (delta_B - mean_k(delta_BK, pairs.mask_BK))) * pairs.mask_BK.any(1)
