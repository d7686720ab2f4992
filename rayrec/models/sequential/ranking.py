"""Scores and lists of a sequential recommender after a history, and their NDCG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rayrec.models.sequential.items import SequentialModel, pad
from rayrec.topk import stable_topk


@torch.inference_mode()
def scores(model: SequentialModel, histories: Sequence[Sequence[int]]) -> Tensor:
    """Return the score of every item after each history, [B, I]; an empty history scores all alike."""
    model.eval()
    table_IH, longest = model.table(), max((len(history) for history in histories), default=0)
    items_BT = pad(histories, min(max(longest, 1), model.length), model.items).to(table_IH.device)
    last_BH = model(items_BT, table_IH)[:, -1]
    some_B1 = torch.tensor([[float(len(history) > 0)] for history in histories])
    return (last_BH @ table_IH.T).cpu() * some_B1


def _blocks(
    model: SequentialModel, histories: Sequence[Sequence[int]], size: int = 512
) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(histories), size):
        yield start, scores(model, histories[start : start + size])


def each_score(model: SequentialModel, histories: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Yield the log-probability of every item after each history, [I]."""
    for _, score_BI in _blocks(model, histories):
        yield from score_BI.log_softmax(-1)


def ndcg(model: SequentialModel, histories: Sequence[Sequence[int]], targets: Sequence[int], k: int = 10) -> float:
    """Return the mean NDCG@k of the targets among all items; ties count against the target."""
    gains = []
    for start, score_BI in _blocks(model, histories):
        target_B = torch.tensor(targets[start : start + len(score_BI)])
        own_B1 = score_BI.gather(1, target_B[:, None])
        rank_B = (score_BI >= own_B1).sum(1)
        gains += (1 / (rank_B + 1).float().log2()).where(rank_B <= k, 0).tolist()
    return float(np.mean(gains)) if gains else 0.0


def top_lists(
    model: SequentialModel, histories: Sequence[Sequence[int]], k: int, leave_out: Sequence[Sequence[int]] | None = None
) -> tuple[list[list[int]], list[list[float]]]:
    """Return the ``k`` best items after each history and their log-probabilities, ties by item number.

    ``leave_out``: items that a list may not hold, such as those of the history.
    """
    lists, logprobs = [], []
    for start, score_BI in _blocks(model, histories):
        score_BI = score_BI.log_softmax(-1)
        for row, score_I in enumerate(score_BI):
            if leave_out is not None and leave_out[start + row]:
                score_I[list(leave_out[start + row])] = -torch.inf
        for score_I, best_K in zip(score_BI, stable_topk(score_BI, k), strict=True):
            best_K = best_K[score_I[best_K] > -torch.inf]
            lists.append(best_K.tolist())
            logprobs.append(score_I[best_K].tolist())
    return lists, logprobs
