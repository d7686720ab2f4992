"""Supervised fine-tuning on the chosen answer."""

from __future__ import annotations

from torch import Tensor


def sft(chosen_B: Tensor, tokens: int | Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Return −Σ_i w_i log π_θ(y_w|x_i) / tokens, the share of ``chosen_B`` in the loss of the global batch.

    ``tokens`` counts the completion tokens of the GLOBAL batch, EOS included, so shares of any cut of the batch add up.
    The prompt is not trained on, as in S-DPO (SPRec's and BIGRec's code train on it too). Weights do not enter tokens.
    """
    return -(chosen_B if weight_B is None else weight_B * chosen_B).sum() / tokens
