"""Caser (Tang and Wang 2018): convolutions over the last few items.

Without the vector that the paper learns for every user: a user who is new at test time has none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayrec.models.fitting import HIDDEN
from rayrec.models.sequential.items import SequentialModel


class Caser(SequentialModel):
    """The last ``window`` items as a picture: ``across`` filters of each height, and ``along`` weightings of them."""

    def __init__(
        self,
        items: int,
        length: int = 10,
        hidden: int = HIDDEN,
        dropout: float = 0.2,
        features: int = 0,
        window: int = 5,
        across: int = 16,
        along: int = 4,
    ):
        super().__init__(items, hidden, features)
        self.length, self.window = length, window
        self.across = nn.ModuleList(nn.Conv1d(hidden, across, height) for height in range(1, window + 1))
        self.along = nn.Conv1d(1, along, window)
        self.out = nn.Linear(across * window + along * hidden, hidden)
        self.last = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def states(self, x_BTH: Tensor, real_BT: Tensor) -> Tensor:
        B, T, H = x_BTH.shape
        # Every place has its own window; the filters of a height are computed once for all windows, and pooled in each.
        x_BHT = F.pad(x_BTH.transpose(1, 2), (self.window - 1, 0))
        found = [F.max_pool1d(conv(x_BHT).relu(), self.window - h, 1) for h, conv in enumerate(self.across)]
        along_BTC = self.along(x_BHT.reshape(B * H, 1, -1)).reshape(B, H, -1, T).permute(0, 3, 1, 2).reshape(B, T, -1)
        both_BTC = torch.cat([torch.cat(found, 1).transpose(1, 2), along_BTC], -1)
        return self.last(self.out(self.dropout(both_BTC)).relu())
