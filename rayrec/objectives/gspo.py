"""GSPO: several steps on one group, by the clipped ratio of whole answers."""

from dataclasses import dataclass

from rayrec.objectives.base import Objective, setting
from rayrec.objectives.group import Group, advantages, of_tokens, ranked_rewards
from rayrec.objectives.pairs import Tensor, mean_k, need


@dataclass(frozen=True)
class Gspo(Objective):
    """-mean_k min(ρA, clip(ρ, 1 - low, 1 + high)A), ρ = exp((log π_θ - log π_old)/|y|) (Zheng et al. 2025).

    π_old is the policy that the phase starts from. Rewards and advantages A are those of `rere`.
    """

    clip_low: float = setting(3e-4, "How far the ratio of an answer counts below 1, > 0")
    clip_high: float = setting(4e-4, "How far the ratio of an answer counts above 1, > 0")
    shape = Group

    def __call__(self, group: Group) -> Tensor:
        ratio_BG = of_tokens(group, group.logprob_BG - need(group.old_BG, "old_BG")).exp()
        advantage_BG = advantages(ranked_rewards(group), group.mask_BG)
        kept_BG = ratio_BG.clamp(1 - self.clip_low, 1 + self.clip_high)
        return -mean_k((ratio_BG * advantage_BG).minimum(kept_BG * advantage_BG), group.mask_BG)
