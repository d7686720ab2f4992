"""Sequential recommenders over item numbers: SASRec (Kang and McAuley 2018), the oracle of RosePO's smoothing.

Shapes: B sequences, T places, H hidden size, I items of the catalogue. A sequence is padded on the left with the number
I.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rayrec.data.catalogue import Catalogue
from rayrec.seeds import seed_of


class SASRec(nn.Module):
    """Causal self-attention over item embeddings, which are also the output layer."""

    def __init__(self, items: int, length: int = 10, hidden: int = 64, blocks: int = 2, dropout: float = 0.2):
        super().__init__()
        self.shape = {"items": items, "length": length, "hidden": hidden, "blocks": blocks, "dropout": dropout}
        self.items, self.length = items, length
        self.item = nn.Embedding(items + 1, hidden, padding_idx=items)
        self.place = nn.Embedding(length, hidden)
        layer: Any = {"dim_feedforward": 4 * hidden, "dropout": dropout, "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(hidden, 1, **layer) for _ in range(blocks))
        self.norm, self.dropout = nn.LayerNorm(hidden), nn.Dropout(dropout)
        for table in (self.item, self.place):
            nn.init.normal_(table.weight, std=0.02)
        with torch.no_grad():
            self.item.weight[items] = 0

    def forward(self, items_BT: Tensor) -> Tensor:
        """Return the state after each place as ``hidden_BTH``, T up to ``length``; an item sees those before it."""
        T = items_BT.shape[1]
        # Places count from the end, so that padding changes nothing.
        x_BTH = self.item(items_BT) + self.place.weight[self.length - T :]
        x_BTH = self.dropout(x_BTH)
        later_TT = torch.ones(T, T, dtype=torch.bool, device=items_BT.device).triu(1)
        hide_BTT = later_TT | (items_BT == self.items)[:, None, :]
        # A place of padding sees itself, since a row of attention may not be empty; nobody reads it.
        hide_BTT = hide_BTT & ~torch.eye(T, dtype=torch.bool, device=items_BT.device)
        for block in self.blocks:
            x_BTH = block(x_BTH, src_mask=hide_BTT)
        return self.norm(x_BTH)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the score of every item, [..., I]."""
        return hidden @ self.item.weight[: self.items].T


def pad(sequences: Sequence[Sequence[int]], length: int, items: int) -> Tensor:
    """Return the last ``length`` items of each sequence as [B, length], padded on the left with ``items``."""
    return torch.tensor([[items] * (length - len(s[-length:])) + list(s[-length:]) for s in sequences])


@torch.inference_mode()
def scores(model: SASRec, histories: Sequence[Sequence[int]]) -> Tensor:
    """Return the logit of every item after each history, [B, I]; an empty history scores all alike."""
    model.eval()
    last_BH = model(pad(histories, model.length, model.items))[:, -1]
    some_B1 = torch.tensor([[float(len(history) > 0)] for history in histories])
    return model.logits(last_BH) * some_B1


def ndcg(model: SASRec, histories: Sequence[Sequence[int]], targets: Sequence[int], k: int = 10) -> float:
    """Return the mean NDCG@k of the targets among all items; ties count against the target."""
    gains = []
    for start in range(0, len(targets), 512):
        score_BI = scores(model, histories[start : start + 512])
        target_B = torch.tensor(targets[start : start + 512])
        own_B1 = score_BI.gather(1, target_B[:, None])
        rank_B = (score_BI >= own_B1).sum(1)
        gains += (1 / (rank_B + 1).float().log2()).where(rank_B <= k, 0).tolist()
    return float(np.mean(gains)) if gains else 0.0


def item_numbers(histories: Iterable[Iterable[str]], catalogue: Catalogue) -> list[list[int]]:
    """Numbers of the titles of each history; titles outside the catalogue are left out."""
    return [[catalogue.index[title] for title in one if title in catalogue.index] for one in histories]


def sequences_of(train: pa.Table, catalogue: Catalogue) -> list[list[int]]:
    """Rebuild what each user met from the windows of the training split (schema.EXAMPLES), in order.

    A window that does not follow the one before it begins a new sequence, so that nothing is joined that was not
    consecutive. Titles outside the catalogue are left out.
    """
    of_user: dict[str, list[dict]] = defaultdict(list)
    rows = train.select(["user", "timestamp", "history", "target"]).to_pylist()
    for row in sorted(rows, key=lambda row: row["timestamp"]):  # stable: the order of the rows breaks ties
        of_user[row["user"]].append(row)
    whole: list[list[str]] = []
    for windows in of_user.values():
        expected: list[str] | None = None
        for row in windows:
            if row["history"] != expected:
                whole.append(list(row["history"]))
            whole[-1].append(row["target"])
            expected = [*row["history"][1:], row["target"]]
    return item_numbers(whole, catalogue)


def fit(
    model: SASRec,
    sequences: Sequence[Sequence[int]],
    valid: tuple[Sequence[Sequence[int]], Sequence[int]],
    seed: int,
    batch: int = 256,
    lr: float = 1e-3,
    epochs: int = 200,
    patience: int = 10,
) -> dict[str, float]:
    """Train with cross-entropy over all items at every place; keep the state of the best validation NDCG@10.

    Sequences are cut into pieces of ``length`` + 1 items that share one item. Training stops after ``patience`` epochs
    without a better validation.
    """
    T, items = model.length, model.items
    pieces = [s[max(0, end - T) : end + 1] for s in sequences for end in range(len(s) - 1, 0, -T)]
    if not pieces:
        raise ValueError("Found no training sequence of two items of the catalogue, wanted at least one.")
    input_PT = pad([piece[:-1] for piece in pieces], T, items)
    target_PT = pad([piece[1:] for piece in pieces], T, items)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    torch.manual_seed(seed_of(seed, "sequential", "dropout"))
    best: dict[str, Any] = {"ndcg": -1.0, "epoch": 0, "state": copy.deepcopy(model.state_dict())}
    epoch = 0
    for epoch in range(1, epochs + 1):
        model.train()
        order_P = np.random.default_rng(seed_of(seed, "sequential", epoch)).permutation(len(pieces))
        for start in range(0, len(pieces), batch):
            rows = torch.from_numpy(order_P[start : start + batch])
            real_BT = target_PT[rows] < items
            logits_NI = model.logits(model(input_PT[rows])[real_BT])
            loss = F.cross_entropy(logits_NI, target_PT[rows][real_BT])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found = ndcg(model, *valid)
        if found > best["ndcg"]:
            best = {"ndcg": found, "epoch": epoch, "state": copy.deepcopy(model.state_dict())}
        elif epoch - best["epoch"] >= patience:
            break
    model.load_state_dict(best["state"])
    return {"valid_NDCG@10": best["ndcg"], "best_epoch": best["epoch"], "epochs": epoch, "pieces": len(pieces)}


def fit_sasrec(train: pa.Table, valid: pa.Table, catalogue: Catalogue, seed: int, folder: str) -> dict[str, float]:
    """Train a SASRec on the training split, stopped early on the validation rows, and save it in ``folder``."""
    torch.manual_seed(seed_of(seed, "sequential"))
    length = max(map(len, train["history"].to_pylist()))
    model = SASRec(len(catalogue), length)
    known = [row for row in valid.select(["history", "target"]).to_pylist() if row["target"] in catalogue.index]
    histories = item_numbers([row["history"] for row in known], catalogue)
    report = fit(
        model, sequences_of(train, catalogue), (histories, [catalogue.index[row["target"]] for row in known]), seed
    )
    save(model, folder)
    return report


def save(model: SASRec, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``config.json``."""
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, Path(folder) / "model.safetensors"
    )
    (Path(folder) / "config.json").write_text(json.dumps(model.shape))


def load(folder: str | Path) -> SASRec:
    """Read what :func:`save` wrote, in evaluation mode."""
    model = SASRec(**json.loads((Path(folder) / "config.json").read_text()))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()
