"""DPO: each rejected answer is one pair with the chosen."""

from dataclasses import dataclass

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, mask_out, mean_k, preference_logits, smooth_nll


@dataclass(frozen=True)
class Dpo(Objective):
    """softplus(−(βh_k − γ_k)), mean over k (Rafailov et al. 2023; S-DPO eq. 7). Margins and smoothing are honoured."""

    beta: float = setting(0.1, BETA)
    smooths = True

    def __call__(self, pairs: Pairs) -> Tensor:
        smoothing_BK = None if pairs.smoothing_BK is None else mask_out(pairs.smoothing_BK, pairs.mask_BK)
        return mean_k(smooth_nll(preference_logits(pairs, self.beta), smoothing_BK), pairs.mask_BK)
