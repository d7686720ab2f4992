"""IPO: regression of the log-ratio gap on 1/(2τ)."""

from dataclasses import dataclass
from typing import Literal

from rayrec.objectives.base import Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, log_ratios, mean_k, per_token


@dataclass(frozen=True)
class Ipo(Objective):
    """(h_k − 1/(2τ))², mean over k (Azar et al. 2023 eq. 17). ``mean`` takes Δ per token, as TRL does."""

    tau: float = setting(0.1, "Regularisation, > 0")
    average: Literal["sum", "mean"] = setting("sum", "Log-probabilities of the sequence, or per token")

    @property
    def scale(self) -> float:
        """Factor of the log-ratios in logged rewards."""
        return self.tau

    def __call__(self, pairs: Pairs) -> Tensor:
        delta_B, delta_BK = log_ratios(pairs)
        if self.average == "mean":
            delta_B, delta_BK = per_token(pairs, delta_B, delta_BK)
        return mean_k((delta_B[:, None] - delta_BK - 1 / (2 * self.tau)) ** 2, pairs.mask_BK)
