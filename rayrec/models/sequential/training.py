"""Training of the sequential recommenders: cross-entropy at every place, stopped early on the validation rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rayrec.metrics import BEST
from rayrec.models.fitting import PUBLISHED, Fitting
from rayrec.models.sequential.items import SequentialModel, pad
from rayrec.models.sequential.ranking import ndcg
from rayrec.seeds import seed_of

#: Key of the validation metric that stops the training.
STOPS_BY = f"valid_{BEST.key(10)}"
#: Batches among which pieces of like length are put together.
_NEAR = 16


@dataclass(frozen=True)
class Share:
    """Which pieces of every batch this worker computes, and how the workers' sums become one."""

    rank: int = 0
    world: int = 1
    add: Callable[[Tensor], Any] = lambda tensor: None
    """Sums a tensor over all workers in place."""


def fit(
    model: SequentialModel,
    sequences: Sequence[Sequence[int]],
    valid: tuple[Sequence[Sequence[int]], Sequence[int]],
    seed: int,
    how: Fitting = PUBLISHED,
    share: Share = Share(),
    on_epoch: Callable[[int, float, float], None] = lambda epoch, loss, found: None,
) -> dict[str, float]:
    """Train on ``sequences`` and keep the state with the best NDCG@10 on ``valid``, histories and targets.

    Sequences are cut into pieces of ``model.length`` + 1 items that share one item; every place has a target. The loss
    is the mean over the places of the whole batch, so the number of workers changes nothing but rounding. ``on_epoch``
    gets each epoch's mean loss and validation.

    Raises:
        ValueError: no sequence has two items.
        FloatingPointError: the loss is not finite.
    """
    cut = model.length
    pieces = [s[max(0, end - cut) : end + 1] for s in sequences for end in range(len(s) - 1, 0, -cut)]
    if not pieces:
        raise ValueError("Found no training sequence of two items of the catalogue, wanted at least one.")
    optimiser = torch.optim.Adam(model.parameters(), lr=how.lr, betas=(0.9, 0.98), weight_decay=how.weight_decay)
    torch.manual_seed(seed_of(seed, "sequential", "dropout", share.rank))
    best: dict[str, Any] = {"ndcg": -1.0, "epoch": 0, "state": copy.deepcopy(model.state_dict())}
    epoch = since = drops = 0
    for epoch in range(1, how.epochs + 1):
        model.train()
        draw = np.random.default_rng(seed_of(seed, "sequential", epoch))
        losses = []
        for rows in _batches(pieces, how.batch, draw):
            wrong = torch.from_numpy(draw.integers(model.items, size=how.sampled)) if how.sampled else None
            optimiser.zero_grad(set_to_none=False)
            loss = _loss(model, [pieces[i] for i in rows], wrong, share)
            if not np.isfinite(loss):
                raise FloatingPointError(f"Epoch {epoch}: the loss is {loss}. Lower the learning rate.")
            optimiser.step()
            losses.append(loss)
        found = ndcg(model, *valid)
        on_epoch(epoch, float(np.mean(losses)), found)
        if found > best["ndcg"]:
            best, since = {"ndcg": found, "epoch": epoch, "state": copy.deepcopy(model.state_dict())}, epoch
        elif epoch - since >= how.patience:
            if drops == how.lr_drops:
                break
            drops, since = drops + 1, epoch
            model.load_state_dict(best["state"])
            for group in optimiser.param_groups:
                group["lr"] /= 10
    model.load_state_dict(best["state"])
    return {STOPS_BY: best["ndcg"], "best_epoch": best["epoch"], "epochs": epoch, "pieces": len(pieces)}


def _batches(pieces: Sequence[Sequence[int]], batch: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Numbers of the pieces of each step: shuffled, with pieces of like length together, so that little is padding."""
    order, near = draw.permutation(len(pieces)), batch * _NEAR
    steps = []
    for start in range(0, len(order), near):
        part = order[start : start + near]
        part = part[np.argsort([len(pieces[i]) for i in part], kind="stable")]
        steps += [part[a : a + batch] for a in range(0, len(part), batch)]
    return (steps[i] for i in draw.permutation(len(steps)))


def _loss(model: SequentialModel, pieces: list[Sequence[int]], wrong: Tensor | None, share: Share) -> float:
    """The mean loss over a batch; its gradient is left in the parameters, of every worker alike."""
    places = sum(len(piece) - 1 for piece in pieces)
    own, device = pieces[share.rank :: share.world], next(model.parameters()).device
    total = torch.zeros((), device=device)
    if own:
        width = max(map(len, own)) - 1
        input_BT = pad([piece[:-1] for piece in own], width, model.items).to(device)
        target_BT = pad([piece[1:] for piece in own], width, model.items).to(device)
        real_BT, table_IH = target_BT < model.items, model.table()
        hidden_NH, target_N = model(input_BT, table_IH)[real_BT], target_BT[real_BT]
        if wrong is None:
            loss = F.cross_entropy(hidden_NH @ table_IH.T, target_N, reduction="sum") / places
        else:
            wrong = wrong.to(device)
            own_N1 = (hidden_NH * table_IH[target_N]).sum(1, keepdim=True)
            wrong_NW = hidden_NH @ table_IH[wrong].T
            wrong_NW = wrong_NW.masked_fill(wrong == target_N[:, None], -torch.inf)
            logits_N = torch.cat([own_N1, wrong_NW], 1)
            loss = F.cross_entropy(logits_N, torch.zeros_like(target_N), reduction="sum") / places
        loss.backward()
        total = loss.detach()
    if share.world > 1:
        share.add(total)
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            share.add(parameter.grad)
    return float(total)
