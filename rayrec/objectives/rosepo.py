"""RosePO: DPO with labels smoothed by an oracle's doubt in each pair."""

from dataclasses import dataclass

from rayrec.objectives.base import BETA, Objective, setting
from rayrec.objectives.dpo import Dpo
from rayrec.objectives.pairs import Pairs, Tensor, need


@dataclass(frozen=True)
class Rosepo(Objective):
    """(1 − ε) softplus(−βh_k) + ε softplus(βh_k), mean over k, ε = P_oracle(y_k ≻ y_w | x) (RosePO; form inferred)."""

    beta: float = setting(0.1, BETA)
    reads = frozenset({"smoothing"})
    smooths = True

    def __call__(self, pairs: Pairs) -> Tensor:
        need(pairs.smoothing_BK, "smoothing_BK")
        return Dpo(self.beta)(pairs)
