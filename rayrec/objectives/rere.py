"""ReRe: REINFORCE on a group of the policy's own beams, whose rewards are normalised in the group."""

from dataclasses import dataclass

from rayrec.objectives.base import Objective
from rayrec.objectives.group import Group, advantages, of_tokens, ranked_rewards
from rayrec.objectives.pairs import Tensor, mean_k


@dataclass(frozen=True)
class Rere(Objective):
    """-(1/G) Σ_k A_k (1/|y_k|) Σ_t π_t/sg(π_t): its value is 0, and its gradient -A_k ∇log π(y_k)/|y_k|, mean over k.

    Nothing is clipped, so a group serves one step of the policy that wrote it. There is no divergence from a reference:
    in that step, from the policy that a phase starts with, it would be 0, and so would its gradient.
    """

    shape = Group
    needs_reference = False
    on_policy = True

    def __call__(self, group: Group) -> Tensor:
        # The mean of the tokens' ratios and the ratio of their geometric mean have one value, 1, and one gradient.
        logprob_BG = of_tokens(group, group.logprob_BG)
        ratio_BG = (logprob_BG - logprob_BG.detach()).exp()
        return -mean_k(advantages(ranked_rewards(group), group.mask_BG) * ratio_BG, group.mask_BG)
