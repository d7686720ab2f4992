"""SASRec (Kang and McAuley 2018): causal self-attention over item vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rayrec.models.fitting import HIDDEN
from rayrec.models.sequential.items import SequentialModel


class SASRec(SequentialModel):
    """``blocks`` layers of attention with ``heads`` heads over up to ``length`` places."""

    def __init__(
        self,
        items: int,
        length: int = 10,
        hidden: int = HIDDEN,
        dropout: float = 0.2,
        features: int = 0,
        blocks: int = 2,
        heads: int = 1,
    ):
        super().__init__(items, hidden, features)
        self.length = length
        self.place = nn.Parameter(torch.randn(length, hidden) * 0.02)
        layer: Any = {"dim_feedforward": 4 * hidden, "dropout": dropout, "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(hidden, heads, **layer) for _ in range(blocks))
        self.norm, self.dropout = nn.LayerNorm(hidden), nn.Dropout(dropout)

    def states(self, x_BTH: Tensor, real_BT: Tensor) -> Tensor:
        T = real_BT.shape[1]
        # Items outweigh places, as in the authors' code: rare ones have short vectors.
        scaled_BTH = x_BTH * x_BTH.shape[-1] ** 0.5
        # Places count from the end, so that padding changes nothing.
        x_BTH = self.dropout(scaled_BTH + self.place[self.length - T :])
        later_TT = torch.ones(T, T, dtype=torch.bool, device=x_BTH.device).triu(1)
        # A place of padding sees itself, since a row of attention may not be empty; its output is not read.
        itself_TT = torch.eye(T, dtype=torch.bool, device=x_BTH.device)
        hide_BTT = (later_TT | ~real_BT[:, None, :]) & ~itself_TT
        heads: Any = self.blocks[0].self_attn
        hide_NTT = hide_BTT.repeat_interleave(heads.num_heads, 0)
        for block in self.blocks:
            x_BTH = block(x_BTH, src_mask=hide_NTT)
        return self.norm(x_BTH)
