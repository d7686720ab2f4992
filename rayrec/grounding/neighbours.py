"""Exact nearest neighbours by L2 distance with ties by item index, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from rayrec.topk import stable_topk

if TYPE_CHECKING:
    from rayrec.grounding.embedder import Vectors

#: Distances held at once.
_CELLS = 2**24
#: Items whose vectors are multiplied at once, and items whose distances are computed one by one at once.
_BLOCK, _PIECE = 2**14, 2**12


def nearest(
    queries_Q: Vectors, items_I: Vectors, k: int, exact: Sequence[int | None], weight_I: np.ndarray | None = None
) -> list[list[int]]:
    """Return the ``k`` nearest items of each query, nearest first, equal distances in the order of the items.

    ``exact``: for each query the item that comes first whatever its distance, or None. ``weight_I``: factor on the
    distance beyond that of the query's nearest item (BIGRec section 3.2). Distances are in float64, and every item is
    looked at. Scratch beyond the vectors stays below 1 GiB.
    """
    weight = None if weight_I is None else torch.from_numpy(np.asarray(weight_I, dtype=np.float64))
    if isinstance(queries_Q, Tensor) and isinstance(items_I, Tensor):
        found = _dense(queries_Q.float(), items_I.float(), k, weight)
    else:
        assert isinstance(queries_Q, sparse.csr_matrix) and isinstance(items_I, sparse.csr_matrix)
        found = _sparse(queries_Q, items_I, k, weight)
    return [
        row if item is None else [item, *(other for other in row if other != item)][:k]
        for row, item in zip(found, exact, strict=True)
    ]


def _dense(queries_QD: Tensor, items_ID: Tensor, k: int, weight_I: Tensor | None) -> list[list[int]]:
    """Rule items out by a product, then compute the others' distances one by one: equal vectors tie bit for bit."""
    dtype, k, found = torch.float32 if weight_I is None else torch.float64, min(k, len(items_ID)), []
    squares_I = torch.cat([block.double().square().sum(1) for block in items_ID.split(_BLOCK)])
    for queries in queries_QD.split(max(1, _CELLS // len(items_ID))):
        blocks = zip(squares_I.to(dtype).split(_BLOCK), items_ID.split(_BLOCK), strict=True)
        score = torch.cat([torch.addmm(s, queries.to(dtype), i.to(dtype).T, alpha=-2) for s, i in blocks], 1)
        # Twice the rounding error of a sum of D + 2 terms (Higham, Accuracy and Stability, section 3.1), and some more.
        lengths = queries.double().norm(dim=1, keepdim=True) + squares_I.amax().sqrt()
        slack = 4 * (items_ID.shape[1] + 8) * torch.finfo(dtype).eps * lengths.square()
        if weight_I is not None:
            score = score.add_(queries.double().square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
            score, slack = _weighted(score, weight_I), 2 * slack.sqrt() * weight_I.amax()
        limit = score.topk(k, largest=False).values[:, -1:] + slack
        for near, query in zip(score <= limit, queries.double(), strict=True):
            items = near.nonzero()[:, 0]
            score = torch.cat([(items_ID[part].double() - query).square().sum(1) for part in items.split(_PIECE)])
            if weight_I is not None:
                score = _weighted(score.sqrt(), weight_I[items])
            found.append(items[stable_topk(score, k, largest=False)].tolist())
    return found


def _weighted(distance: Tensor, weight: Tensor) -> Tensor:
    """BIGRec's order; the scale of a query's distances changes none."""
    return (distance - distance.amin(-1, keepdim=True)) * weight


def _sparse(
    queries_Q: sparse.csr_matrix, items_I: sparse.csr_matrix, k: int, weight_I: Tensor | None
) -> list[list[int]]:
    """All distances of a query at once; a sparse product adds in the order of the query's entries, so equal rows of
    items have equal distances."""
    columns, found = sparse.csr_matrix(items_I.T), []
    squares_I, squares_Q = _unit_squares(items_I), _unit_squares(queries_Q)
    size = max(1, _CELLS // len(squares_I))
    for start in range(0, len(squares_Q), size):
        queries = sparse.csr_matrix(queries_Q[start : start + size])
        product = torch.from_numpy(sparse.csr_matrix(queries @ columns).toarray())
        distance = product.mul_(-2).add_(squares_Q[start : start + size, None]).add_(squares_I).clamp_(min=0).sqrt_()
        if weight_I is not None:
            distance = _weighted(distance, weight_I)
        found += stable_topk(distance, k, largest=False).tolist()
    return found


def _unit_squares(rows: sparse.csr_matrix) -> Tensor:
    """1, or 0 for an empty row: rounding must not order the many items that share nothing with a query."""
    return torch.from_numpy(np.diff(rows.indptr) > 0).double()
