"""ORPO: likelihood of the chosen answer, and its odds against those of the rejected ones, without a reference."""

from dataclasses import dataclass

from rayrec.objectives.base import Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, chosen_nll, mask_out, mean_k, per_token, softplus

#: Most log-probability per token: at 0 the odds are infinite.
_MOST = -1e-6


@dataclass(frozen=True)
class Orpo(Objective):
    """-l_w + λ softplus(-o_k), mean over k, o_k = log odds(w) - log odds(k), l = log π/|y| (Hong et al. 2024)."""

    lam: float = setting(0.1, "Weight of the odds ratio, >= 0", zero=True)
    needs_reference = False

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; the likelihood term alone for an example without a rejected answer."""
        chosen_B, rejected_BK = per_token(pairs, pairs.chosen_B, pairs.rejected_BK)
        rejected_BK = mask_out(rejected_BK, pairs.mask_BK, -1.0)
        odds_BK = _log_odds(chosen_B)[:, None] - _log_odds(rejected_BK)
        return chosen_nll(pairs) + self.lam * mean_k(softplus(-odds_BK), pairs.mask_BK)


def _log_odds(logprob: Tensor) -> Tensor:
    """Return log(p/(1 - p)) of log p; 1 - p keeps its digits at both ends."""
    from math import log

    logprob = logprob.clamp(max=_MOST)
    near = logprob > -log(2)
    rest = (-logprob.where(near, -1.0).expm1()).log().where(near, (-logprob.where(~near, -1.0).exp()).log1p())
    return logprob - rest
