"""RecPO: S-DPO with margins from how much, and how soon, the user liked each item."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from rayrec.objectives.pairs import Pairs, mask_out, need, positive
from rayrec.objectives.sdpo import Sdpo


def utility(score: Tensor, distance: Tensor) -> Tensor:
    """Return φ(s, d) = s / √d of ratings ``score`` and of ``distance``, interactions ahead (1 is the very next)."""
    return score / distance.sqrt()


@dataclass(frozen=True)
class Recpo:
    """softplus(logsumexp_k [β(Δ_k − Δ_w) + γ_k]), γ_k from φ (RecPO eq. 6, table 2).

    Eq. 8 prints −λ; eq. 6 and the release have +. The pairs' scores are φ: ``ratio`` γ = λ φ_w/φ_k, ``log_ratio``
    γ = λ(log φ_w − log φ_k), ``log_diff`` γ = λ log(1 + φ_w − φ_k) as in the release (the paper prints no 1).
    """

    beta: float = 1.0
    lam: float = 2.0
    margin: Literal["ratio", "log_ratio", "log_diff"] = "ratio"
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("beta", self.beta)
        if not 0 <= self.lam < float("inf"):
            raise ValueError(f"Found lam = {self.lam}; it must be a finite number >= 0.")
        if self.margin not in ("ratio", "log_ratio", "log_diff"):
            raise ValueError(f"Found margin '{self.margin}'. Choose one of ratio, log_ratio, log_diff.")

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; 0 for an example without a rejected answer."""
        return Sdpo(self.beta)(replace(pairs, margin_BK=self.gamma_k(pairs)) if self.lam else pairs)

    def gamma_k(self, pairs: Pairs) -> Tensor:
        """Return γ_k as [B, K]; ValueError where φ has no such margin."""
        phi_BK = mask_out(need(pairs.score_rejected_BK, "score_rejected_BK"), pairs.mask_BK, 1.0)
        phi_B1 = need(pairs.score_chosen_B, "score_chosen_B")[:, None]
        if bool((phi_BK <= 0).any() | (phi_B1 <= 0).any()):
            raise ValueError("Found φ <= 0; ratings and distances must be > 0.")
        if self.margin == "ratio":
            return self.lam * phi_B1 / phi_BK
        if self.margin == "log_ratio":
            return self.lam * (phi_B1.log() - phi_BK.log())
        if bool((mask_out(1 + phi_B1 - phi_BK, pairs.mask_BK, 1.0) <= 0).any()):
            raise ValueError("Margin log_diff needs φ_w > φ_k − 1. Take the target of largest φ, or margin ratio.")
        return self.lam * mask_out(phi_B1 - phi_BK, pairs.mask_BK).log1p()
