"""A batch of preference pairs, and the sums that the objectives share."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # an import of torch takes a second or more, and --help needs this module


@dataclass(frozen=True)
class Pairs:
    """A batch of one chosen and up to K rejected answers; log-probabilities are sums over tokens, EOS too, in nats."""

    chosen_B: Tensor  #: log π_θ(y_w|x)
    rejected_BK: Tensor  #: log π_θ(y_k|x)
    mask_BK: Tensor  #: whether the rejected answer exists; other [B, K] tensors are not read elsewhere
    ref_chosen_B: Tensor | None = None  #: the same under the frozen reference
    ref_rejected_BK: Tensor | None = None
    chosen_length_B: Tensor | None = None  #: tokens, EOS included
    rejected_length_BK: Tensor | None = None
    margin_BK: Tensor | None = None  #: γ_k, by which the chosen reward should exceed the rejected one
    smoothing_BK: Tensor | None = None  #: ε_k, the probability that the pair is the wrong way round
    score_chosen_B: Tensor | None = None  #: φ, or a rating, of the item; larger is better
    score_rejected_BK: Tensor | None = None
    baseline_B: Tensor | None = None  #: z, the reference point of the global batch
    columns_BA: Mapping[str, Tensor] = field(default_factory=dict)  #: further columns, the chosen answer first
    groups: ClassVar[bool] = False

    @staticmethod
    def row(row: dict[str, Any]) -> dict[str, Any]:
        """Return a token row as it passes the model: its answers are the chosen one and then the rejected ones."""
        return row

    @classmethod
    def of(
        cls,
        logprob_BA: Tensor,
        rows: Sequence[Mapping[str, Any]],
        ref_BA: Tensor | None = None,
        baseline: float | None = None,
        more: Collection[str] = (),
    ) -> Pairs:
        """Return the pairs of a micro-batch, whose examples may differ in their number of answers.

        ``logprob_BA`` and ``ref_BA`` are log-probabilities of the answers under policy and reference, the chosen answer
        first. ``rows`` have ``answers`` (token ids), ``scores`` and ``smoothing`` (both None unless filled), and the
        columns ``more``, a number for each answer; ``baseline`` is z of the global batch.
        """
        import torch

        (B, A), device = logprob_BA.shape, logprob_BA.device
        lengths_BA = padded([[len(answer) for answer in row["answers"]] for row in rows], A, device)
        scores_BA = None if rows[0]["scores"] is None else padded([row["scores"] for row in rows], A, device)
        doubts_BK = None if rows[0]["smoothing"] is None else padded([row["smoothing"] for row in rows], A - 1, device)
        return cls(
            chosen_B=logprob_BA[:, 0],
            rejected_BK=logprob_BA[:, 1:],
            mask_BK=lengths_BA[:, 1:] > 0,
            ref_chosen_B=None if ref_BA is None else ref_BA[:, 0],
            ref_rejected_BK=None if ref_BA is None else ref_BA[:, 1:],
            chosen_length_B=lengths_BA[:, 0],
            rejected_length_BK=lengths_BA[:, 1:],
            smoothing_BK=doubts_BK,
            score_chosen_B=None if scores_BA is None else scores_BA[:, 0],
            score_rejected_BK=None if scores_BA is None else scores_BA[:, 1:],
            baseline_B=None if baseline is None else torch.full((B,), baseline, device=device),
            columns_BA={name: padded([row[name] for row in rows], A, device) for name in more},
        )

    def logged(self, scale: float) -> dict[str, Tensor]:
        """Return the :func:`rewards` of each example."""
        margin_B, accuracy_B = rewards(self, scale)
        return {"reward_margin": margin_B, "reward_accuracy": accuracy_B}

    @staticmethod
    def told(rows: Iterable[tuple[str, Sequence[str]]]) -> dict[str, float]:
        """Return nothing: the negatives of a phase are counted where they are made."""
        return {}


def need(value: Tensor | None, name: str) -> Tensor:
    """Return ``value``, or raise ValueError when the batch lacks it."""
    if value is None:
        raise ValueError(f"This objective reads '{name}', which the batch does not hold. Fill it, or choose another.")
    return value


def log_ratios(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return Δ_w [B] and Δ_k [B, K], log π_θ − log π_ref; masked places are 0."""
    delta_B = pairs.chosen_B - need(pairs.ref_chosen_B, "ref_chosen_B")
    return delta_B, mask_out(pairs.rejected_BK - need(pairs.ref_rejected_BK, "ref_rejected_BK"), pairs.mask_BK)


def rewards(pairs: Pairs, beta: float) -> tuple[Tensor, Tensor]:
    """Return, for logging and without gradient, the reward margin and accuracy of each example.

    ``margin_B`` = β(Δ_w − mean_k Δ_k), and ``accuracy_B`` = share of k with Δ_w > Δ_k (ties count as wrong), where Δ is
    log π_θ itself in a batch without reference. Both are 0 for an example without a rejected answer.
    """
    if pairs.ref_chosen_B is None:
        pairs = replace(pairs, ref_chosen_B=pairs.chosen_B * 0, ref_rejected_BK=pairs.rejected_BK * 0)
    delta_B, delta_BK = log_ratios(pairs)
    gap_BK = (delta_B[:, None] - delta_BK).detach()
    return beta * mean_k(gap_BK, pairs.mask_BK), mean_k((gap_BK > 0).to(gap_BK.dtype), pairs.mask_BK)


def per_token(pairs: Pairs, chosen_B: Tensor, rejected_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums over tokens divided by the answers' lengths."""
    length_B = need(pairs.chosen_length_B, "chosen_length_B")
    length_BK = need(pairs.rejected_length_BK, "rejected_length_BK")
    return chosen_B / length_B, mask_out(rejected_BK, pairs.mask_BK) / mask_out(length_BK, pairs.mask_BK, 1)


def chosen_nll(pairs: Pairs) -> Tensor:
    """Return - log π_θ(y_w)/|y_w|, the mean over the chosen answer's tokens."""
    return -pairs.chosen_B / need(pairs.chosen_length_B, "chosen_length_B")


def mask_out(values_BK: Tensor, mask_BK: Tensor, value: float = 0.0) -> Tensor:
    """Return ``values_BK`` with ``value``, and no gradient, where there is no rejected answer."""
    return values_BK.where(mask_BK, value)


def mean_k(values_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """Return the mean over the rejected answers of each example; 0 where there is none."""
    return mask_out(values_BK, mask_BK).sum(1) / mask_BK.sum(1).clamp(min=1)


def logsumexp_k(values_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """Return log Σ_k exp over the rejected answers of each example; −∞ where there is none."""
    return mask_out(values_BK, mask_BK, -math.inf).logsumexp(1)


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + e^x) at full precision (F.softplus is cut to x above 20, an error of 1e-10)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(-x)


def smooth_nll(logit: Tensor, smoothing: Tensor | None) -> Tensor:
    """Return (1 − ε)·softplus(−u) + ε·softplus(u), the cross-entropy of σ(u) against 1 − ε."""
    if smoothing is None:
        return softplus(-logit)
    return (1 - smoothing) * softplus(-logit) + smoothing * softplus(logit)


def preference_logits(pairs: Pairs, beta: float) -> Tensor:
    """Return β(Δ_w − Δ_k) − γ_k as [B, K]."""
    delta_B, delta_BK = log_ratios(pairs)
    logit_BK = beta * (delta_B[:, None] - delta_BK)
    return logit_BK if pairs.margin_BK is None else logit_BK - mask_out(pairs.margin_BK, pairs.mask_BK)


def padded(values: Sequence[Sequence[float]], width: int, device: Any) -> Tensor:
    """Return lists as [B, width] on ``device``, zeros at their ends."""
    import torch

    table = torch.zeros(len(values), width)
    for b, one in enumerate(values):
        table[b, : len(one)] = torch.as_tensor(one)
    return table.to(device, non_blocking=True)
