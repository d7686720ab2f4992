"""ODPO: DPO with an offset that grows with the gap between the scores."""

from dataclasses import dataclass, replace

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.dpo import Dpo
from rayrec.objectives.pairs import Pairs, Tensor, mask_out, need


def ordered(pairs: Pairs) -> Tensor:
    """Return a [B, K] mask of the pairs with s_w > s_k; the others are dropped, and the caller counts them."""
    return pairs.mask_BK & (gaps(pairs) > 0)


def gaps(pairs: Pairs) -> Tensor:
    """Return s_w − s_k as [B, K]."""
    score_BK = need(pairs.score_rejected_BK, "score_rejected_BK")
    return need(pairs.score_chosen_B, "score_chosen_B")[:, None] - score_BK


@dataclass(frozen=True)
class Odpo(Objective):
    """softplus(−(βh_k − α log(s_w − s_k))), mean over the ordered k (Amini et al. 2024); s is a rating or φ."""

    beta: float = setting(0.1, BETA)
    alpha: float = setting(1.0, "Weight of the offset, > 0")
    reads = frozenset({"scores"})
    smooths = True
    ordered = True

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; 0 for an example without an ordered pair, which the caller leaves out."""
        mask_BK = ordered(pairs)
        offset_BK = self.alpha * mask_out(gaps(pairs), mask_BK, 1.0).log()
        return Dpo(self.beta)(replace(pairs, margin_BK=offset_BK, mask_BK=mask_BK))
