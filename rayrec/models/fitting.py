"""How sequential recommenders are trained, apart from the models, which import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rayrec.fields import NOT_NEGATIVE, POSITIVE

#: Size of an item's vector in the sequential recommenders of S-DPO and RecPO, and in the oracle of a run.
HIDDEN = 64


@dataclass(frozen=True)
class Fitting:
    """How a sequential recommender is trained: as S-DPO and RecPO train theirs, and as the oracle of a run is."""

    lr: Annotated[float, POSITIVE] = 1e-3
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    batch: Annotated[int, POSITIVE] = 256
    """Pieces of sequences of an optimiser step, whatever the number of workers."""
    epochs: Annotated[int, POSITIVE] = 200
    """Most epochs."""
    patience: Annotated[int, POSITIVE] = 10
    """Epochs without a better validation NDCG@10, over the whole catalogue, after which training stops."""
    lr_drops: Annotated[int, NOT_NEGATIVE] = 0
    """Times that it first goes on from the best state instead, at a tenth of the learning rate."""
    sampled: Annotated[int, NOT_NEGATIVE] = 0
    """Wrong items in the loss, drawn for each step; 0: the whole catalogue."""


PUBLISHED = Fitting()
