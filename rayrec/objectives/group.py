"""Groups of a policy's own titles with rewards: what they teach, and the sums that their objectives share.

A group holds G distinct titles, best beam first. The target is one of them or is missing; it has no row of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rayrec.objectives.pairs import Tensor, mask_out, padded

#: Added to the standard deviation of a group's rewards.
_LEAST = 1e-4


@dataclass(frozen=True)
class Group:
    """A batch of groups of up to G answers; log-probabilities are sums over tokens, EOS too, in nats."""

    logprob_BG: Tensor  #: log π_θ(y_k|x)
    mask_BG: Tensor  #: whether the answer exists; other tensors are not read elsewhere
    hit_BG: Tensor  #: whether the answer is the target
    length_BG: Tensor  #: tokens, EOS included
    old_BG: Tensor | None = None  #: log π_θ as the phase starts
    groups: ClassVar[bool] = True

    @staticmethod
    def row(row: dict[str, Any]) -> dict[str, Any]:
        """Return a token row with the group as its ``answers``, and ``hits``: which of them is the target.

        Without the target all rewards are 0, and nothing is learnt. Such a row stays in the mean of its batch, and one
        token stands for it in the pass.
        """
        target, *answers = row["answers"]
        hits = [answer == target for answer in answers]
        if any(hits):
            return row | {"answers": answers, "hits": hits}
        return row | {"prompt": row["prompt"][:1], "answers": [answers[0][:1]], "hits": [False]}

    @classmethod
    def of(
        cls,
        logprob_BA: Tensor,
        rows: Sequence[Mapping[str, Any]],
        ref_BA: Tensor | None = None,
        baseline: float | None = None,
        more: Collection[str] = (),
    ) -> Group:
        """Return the groups of a micro-batch of rows that :meth:`row` made; ``ref_BA`` is ``old_BG``."""
        G, device = logprob_BA.shape[1], logprob_BA.device
        length_BG = padded([[len(answer) for answer in row["answers"]] for row in rows], G, device)
        hit_BG = padded([row["hits"] for row in rows], G, device)
        return cls(logprob_BA, length_BG > 0, hit_BG > 0, length_BG, ref_BA)

    def logged(self, scale: float) -> dict[str, Tensor]:
        """Return ``group_hit`` of each example: 1 where its group holds the target."""
        return {"group_hit": self.hit_BG.any(1).to(self.logprob_BG.dtype)}

    @staticmethod
    def told(rows: Iterable[tuple[str, Sequence[str]]]) -> dict[str, float]:
        """Count the targets and groups of a phase: groups that hold their target, and their share of all (HR@G)."""
        held = [target in titles for target, titles in rows]
        return {"groups_with_target": sum(held), "group_hit": sum(held) / max(1, len(held))}


def ranked_rewards(group: Group) -> Tensor:
    """Return r_k as [B, G]: 1 for the target, -c_k/Σ_j c_j for the others, c_k = 1/log2(k + 1) of the k-th beam.

    All are 0 in a group without the target (ReRe's release).
    """
    import torch

    place_G = torch.arange(1, group.mask_BG.shape[1] + 1, device=group.logprob_BG.device, dtype=group.logprob_BG.dtype)
    gain_BG = mask_out((1 / (place_G + 1).log2()).expand_as(group.logprob_BG), group.mask_BG)
    miss_BG = -gain_BG / gain_BG.sum(1, keepdim=True).clamp(min=_LEAST)
    return miss_BG.masked_fill(group.hit_BG, 1.0) * group.hit_BG.any(1, keepdim=True)


def advantages(reward_BG: Tensor, mask_BG: Tensor) -> Tensor:
    """Return (r_k - mean)/(std + 1e-4) of each group as [B, G], std with n - 1; 0 where there is no answer."""
    count_B1 = mask_BG.sum(1, keepdim=True)
    mean_B1 = mask_out(reward_BG, mask_BG).sum(1, keepdim=True) / count_B1.clamp(min=1)
    apart_BG = mask_out(reward_BG - mean_B1, mask_BG)
    variance_B1 = apart_BG.square().sum(1, keepdim=True) / (count_B1 - 1).clamp(min=1)
    return apart_BG / (variance_B1.sqrt() + _LEAST)


def of_tokens(group: Group, value_BG: Tensor) -> Tensor:
    """Return sums over tokens divided by the answers' lengths."""
    return mask_out(value_BG, group.mask_BG) / mask_out(group.length_BG, group.mask_BG, 1)
