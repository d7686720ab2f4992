"""IPO: regression of the log-ratio gap on 1/(2τ)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from rayrec.objectives.pairs import Pairs, log_ratios, mean_k, per_token, positive


@dataclass(frozen=True)
class Ipo:
    """(h_k − 1/(2τ))², mean over k (Azar et al. 2023 eq. 17). ``mean`` takes Δ per token, as TRL does."""

    tau: float = 0.1
    average: Literal["sum", "mean"] = "sum"
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("tau", self.tau)
        if self.average not in ("sum", "mean"):
            raise ValueError(f"Found average '{self.average}'. Choose sum or mean.")

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; 0 for an example without a rejected answer."""
        delta_B, delta_BK = log_ratios(pairs)
        if self.average == "mean":
            delta_B, delta_BK = per_token(pairs, delta_B, delta_BK)
        return mean_k((delta_B[:, None] - delta_BK - 1 / (2 * self.tau)) ** 2, pairs.mask_BK)
