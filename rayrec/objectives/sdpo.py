"""S-DPO: the chosen answer against all rejected ones at once."""

from dataclasses import dataclass

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, logsumexp_k, mask_out, mean_k, preference_logits, smooth_nll


@dataclass(frozen=True)
class Sdpo(Objective):
    """softplus(logsumexp_k [β(Δ_k − Δ_w) + γ_k]) (S-DPO eq. 11). Margins are honoured.

    Smoothing has one ε per example, the mean over k (ours; K = 1 is RosePO's).
    """

    beta: float = setting(1.0, BETA)
    smooths = True

    def __call__(self, pairs: Pairs) -> Tensor:
        logit_B = -logsumexp_k(-preference_logits(pairs, self.beta), pairs.mask_BK)
        smoothing_B = None if pairs.smoothing_BK is None else mean_k(pairs.smoothing_BK, pairs.mask_BK)
        has_k = pairs.mask_BK.any(1)
        return smooth_nll(mask_out(logit_B, has_k), smoothing_B) * has_k
