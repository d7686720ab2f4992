"""``semantic``: the items most like the user's history, by sentence embedding (RosePO)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

from rayrec.data.catalogue import Catalogue
from rayrec.grounding import Embedder
from rayrec.negatives.draw import Draw, contexts, table, too_few
from rayrec.topk import stable_topk

if TYPE_CHECKING:
    from torch import Tensor

#: Similarities held at once.
_CELLS = 1 << 25


def semantic_table(examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw) -> pa.Table:
    """Return, for each example, the ``draw.k`` items of largest cosine to the mean of the history's unit vectors.

    Target and history are left out. (SPRec's copy of RosePO takes the least similar.) ValueError: no embedder, or fewer
    items are left.
    """
    import torch

    if draw.similar is None:
        raise ValueError("semantic negatives compare titles, but found no embedder. Name one with --embedder sentence.")
    rows, kept = [], contexts(examples)
    item_IH = _unit(draw.similar, tuple(catalogue.titles))
    shown = sorted({title for example in kept for title in example["history"]})
    shown_SH, place = _unit(draw.similar, tuple(shown)), {title: i for i, title in enumerate(shown)}
    size = max(1, _CELLS // len(item_IH))
    for start in range(0, len(kept), size):
        part = kept[start : start + size]
        means = [shown_SH[[place[t] for t in e["history"]]].sum(0) for e in part]  # its length leaves the order alone
        # Rounded, so that items of equal vectors tie whatever the shape of the product.
        score_BI = (torch.stack(means) @ item_IH.T).round(decimals=9)
        for example, score_I in zip(part, score_BI, strict=True):
            taken = [catalogue.index[t] for t in (*example["history"], example["target"]) if t in catalogue.index]
            score_I[taken] = -torch.inf
            if (free := len(score_I) - len({*taken})) < draw.k:
                raise too_few(example["example_id"], free, draw.k)
        for example, best in zip(part, stable_topk(score_BI, draw.k).tolist(), strict=True):
            rows += draw.drawn(example["example_id"], "semantic", [catalogue.titles[item] for item in best])
    return table(rows)


@lru_cache(maxsize=4)
def _unit(embedder: Embedder, texts: tuple[str, ...]) -> Tensor:
    """Return unit vectors of texts, (n, d) float64; zero where the embedder knows no word."""
    import torch

    vectors = embedder.embed(texts)
    dense = vectors if isinstance(vectors, torch.Tensor) else torch.from_numpy(vectors.toarray())
    return torch.nn.functional.normalize(dense.double())
