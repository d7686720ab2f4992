"""GRU4Rec (Hidasi et al. 2016): a gated recurrent network over item vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayrec.models.fitting import HIDDEN
from rayrec.models.sequential.items import SequentialModel


class GRU4Rec(SequentialModel):
    """``blocks`` recurrent layers; a place's state is the last layer's, mapped back to the space of the items."""

    def __init__(
        self,
        items: int,
        length: int = 10,
        hidden: int = HIDDEN,
        dropout: float = 0.2,
        features: int = 0,
        blocks: int = 1,
    ):
        super().__init__(items, hidden, features)
        self.length = length
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(hidden, hidden, blocks, batch_first=True)
        self.out = nn.Linear(hidden, hidden)

    def states(self, x_BTH: Tensor, real_BT: Tensor) -> Tensor:
        # The network must not step over padding: sequences begin at place 0 for it, and go back to the end after it.
        T = real_BT.shape[1]
        place_T = torch.arange(T, device=x_BTH.device)
        padding_B1 = T - real_BT.sum(1, keepdim=True)
        first_BT1 = ((place_T + padding_B1) % T)[..., None]
        back_BT1 = ((place_T - padding_B1) % T)[..., None]
        x_BTH = self.dropout(x_BTH).gather(1, first_BT1.expand_as(x_BTH))
        hidden_BTH = self.gru(x_BTH)[0]
        return self.out(self.dropout(hidden_BTH.gather(1, back_BT1.expand_as(hidden_BTH))))
