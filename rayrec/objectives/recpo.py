"""RecPO: S-DPO with margins from how much, and how soon, the user liked each item."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, mask_out, need
from rayrec.objectives.sdpo import Sdpo


@dataclass(frozen=True)
class Recpo(Objective):
    """softplus(logsumexp_k [β(Δ_k − Δ_w) + γ_k]), γ_k from φ (RecPO eq. 6, table 2).

    Eq. 8 prints −λ; eq. 6 and the release have +. The pairs' scores are φ: ``ratio`` γ = λ φ_w/φ_k, ``log_ratio``
    γ = λ(log φ_w − log φ_k), ``log_diff`` γ = λ log(1 + φ_w − φ_k) as in the release (the paper prints no 1).
    """

    beta: float = setting(1.0, BETA)
    lam: float = setting(2.0, "Weight of the margins, >= 0", zero=True)
    margin: Literal["ratio", "log_ratio", "log_diff"] = setting("ratio", "Form of the margins")
    reads = frozenset({"scores"})
    smooths = True

    def __call__(self, pairs: Pairs) -> Tensor:
        return Sdpo(self.beta)(replace(pairs, margin_BK=self.gamma_k(pairs)) if self.lam else pairs)

    def check_ratings(self, target: str, ratings_N: np.ndarray, tuned_M: np.ndarray) -> None:
        """Refuse ratings of 0, by which the margins divide, and those that give ``log_diff`` a logarithm below 0."""
        worst, best = np.nanmin(ratings_N), np.nanmax(ratings_N)
        if worst <= 0:
            raise ValueError(
                f"--objective recpo divides by ratings, and one is {worst:g}. Take a scale that starts above 0."
            )
        if self.margin == "log_diff" and target == "nearest":
            raise ValueError(
                "--margin log_diff with --target nearest is the logarithm of a number below 0 where a title was rated "
                "a little lower and came much sooner. Take --target utility, or --margin ratio."
            )
        # The largest utility of a rejected item is that of the best rating, two places ahead.
        if self.margin == "log_diff" and target == "next" and (least := np.nanmin(tuned_M)) <= best / 2**0.5 - 1:
            raise ValueError(
                f"--margin log_diff of targets rated {least:g} beside later items rated {best:g} is the logarithm of a "
                f"number below 0. Add --min-rating {best - 1:g}, or --margin ratio."
            )

    def gamma_k(self, pairs: Pairs) -> Tensor:
        """Return γ_k as [B, K]; ValueError where φ has no such margin.

        On a GPU, which a look at φ would wait for, such a margin makes the loss infinite, and the step names the rows.
        """
        phi_BK = mask_out(need(pairs.score_rejected_BK, "score_rejected_BK"), pairs.mask_BK, 1.0)
        phi_B1 = need(pairs.score_chosen_B, "score_chosen_B")[:, None]
        looks = phi_BK.device.type == "cpu"
        if looks and bool((phi_BK <= 0).any() | (phi_B1 <= 0).any()):
            raise ValueError("Found φ <= 0; ratings and distances must be > 0.")
        if self.margin == "ratio":
            return self.lam * phi_B1 / phi_BK
        if self.margin == "log_ratio":
            return self.lam * (phi_B1.log() - phi_BK.log())
        if looks and bool((mask_out(1 + phi_B1 - phi_BK, pairs.mask_BK, 1.0) <= 0).any()):
            raise ValueError("Margin log_diff needs φ_w > φ_k − 1. Take the target of largest φ, or margin ratio.")
        return self.lam * mask_out(phi_B1 - phi_BK, pairs.mask_BK).log1p()
