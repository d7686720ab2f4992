"""CPO: a contrast without a reference, held in place by the likelihood of the chosen answer."""

from dataclasses import dataclass

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, chosen_nll, mask_out, mean_k, softplus


@dataclass(frozen=True)
class Cpo(Objective):
    """softplus(−β(log π(y_w) − log π(y_k))), mean over k, − α log π(y_w)/|y_w| once (Xu et al. 2024 eq. 3)."""

    beta: float = setting(0.1, BETA)
    alpha: float = setting(1.0, "Weight of the likelihood term, >= 0", zero=True)
    needs_reference = False

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; the likelihood term alone for an example without a rejected answer."""
        gap_BK = pairs.chosen_B[:, None] - mask_out(pairs.rejected_BK, pairs.mask_BK)
        return mean_k(softplus(-self.beta * gap_BK), pairs.mask_BK) + self.alpha * chosen_nll(pairs)
