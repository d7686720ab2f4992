"""SimPO: length-normalised rewards with a target margin and no reference."""

from dataclasses import dataclass

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, mean_k, per_token, softplus


@dataclass(frozen=True)
class Simpo(Objective):
    """softplus(−(β log π(y_w)/|y_w| − β log π(y_k)/|y_k| − γ)), mean over k (Meng et al. 2024; RecPO appendix D)."""

    beta: float = setting(1.0, BETA)
    gamma: float = setting(2.0, "Target margin, >= 0", zero=True)
    needs_reference = False

    def __call__(self, pairs: Pairs) -> Tensor:
        chosen_B, rejected_BK = per_token(pairs, pairs.chosen_B, pairs.rejected_BK)
        return mean_k(softplus(self.gamma - self.beta * (chosen_B[:, None] - rejected_BK)), pairs.mask_BK)
