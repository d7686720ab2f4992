"""KTO: every answer is judged alone against a shared reference point."""

from dataclasses import dataclass

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.pairs import Pairs, Tensor, log_ratios, mask_out, need


@dataclass(frozen=True)
class Kto(Objective):
    """[λ_D(1 − σ(β(Δ_w − z))) + λ_U Σ_k(1 − σ(β(z − Δ_k)))]/(1 + K) (Ethayarajh et al. 2024 eq. 7 to 9); λ_U 1/K."""

    beta: float = setting(0.1, BETA)
    lambda_d: float = setting(1.0, "Weight of the chosen answers, > 0")
    lambda_u: float | None = setting(None, "Weight of the rejected answers, > 0; default 1/K")
    reads = frozenset({"neighbour"})
    least_batch = 2

    def __call__(self, pairs: Pairs) -> Tensor:
        """Return ``loss_B``; the chosen term alone for an example without a rejected answer."""
        delta_B, delta_BK = log_ratios(pairs)
        z_B = need(pairs.baseline_B, "baseline_B").detach()
        k_B = pairs.mask_BK.sum(1).to(delta_B.dtype)
        # 1 − σ(u) is computed as σ(−u), which keeps its digits where σ(u) is near 1.
        chosen_B = self.lambda_d * (self.beta * (z_B - delta_B)).sigmoid()
        rejected_BK = mask_out((self.beta * (delta_BK - z_B[:, None])).sigmoid(), pairs.mask_BK)
        lambda_u = 1 / k_B.clamp(min=1) if self.lambda_u is None else self.lambda_u
        return (chosen_B + lambda_u * rejected_BK.sum(1)) / (1 + k_B)

    def reference_point(self, log_ratios: float, count: float) -> float:
        """Return z = max(0, mean_i log π_θ/π_ref(y_{i+1}|x_i)); 0 for a batch of one, which has no neighbours."""
        return max(0.0, super().reference_point(log_ratios, count)) if count > 1 else 0.0
