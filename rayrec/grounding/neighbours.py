"""Exact nearest neighbours by L2 distance with ties by item index, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy import sparse

#: Dense float32 vectors (n, d), or sparse rows of unit length or zero.
Vectors = torch.Tensor | sparse.csr_matrix

#: Distances held at once: up to 16 bytes of scratch for each are 512 MiB.
_CELLS = 2**25
#: Items whose vectors are multiplied at once.
_BLOCK = 2**14
#: Items in a group, of which at first only the nearest is looked at.
_GROUP = 64
#: Pairs whose distance is computed at once in float64: they stay in the cache.
_PIECE = 2**10


class Embedder(Protocol):
    """Turns texts into vectors. Embedders compare equal (and hash equally) only where they give equal vectors."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, (n, d)."""
        ...

    def exact(self, text: str) -> int | None:
        """Return the item that ``text`` names letter by letter, or None; embedders that do not look return None."""
        ...

    def __hash__(self) -> int: ...


def nearest(
    queries_Q: Vectors,
    items_I: Vectors,
    k: int,
    exact: Sequence[int | None],
    weight_I: np.ndarray | None = None,
) -> list[list[int]]:
    """Return the ``k`` nearest items of each query, nearest first, equal distances in the order of the items.

    Args:
        exact: for each query the item that comes first whatever its distance, or None.
        weight_I: factor on the distance, which is then scaled to 0..1 for each query first (BIGRec section 3.2).

    Distances are in float64, and every item is looked at. Queries and items are cut so that scratch beyond the vectors
    stays below 1 GiB.
    """
    if isinstance(queries_Q, torch.Tensor) and isinstance(items_I, torch.Tensor) and weight_I is None:
        found = _by_candidates(queries_Q.float(), items_I.float(), k)
    else:
        found = _by_rows(queries_Q, items_I, k, len(exact), weight_I)
    return [
        row if item is None else [item, *(other for other in row if other != item)][:k]
        for row, item in zip(found, exact, strict=True)
    ]


def _by_candidates(queries_QD: torch.Tensor, items_ID: torch.Tensor, k: int) -> list[list[int]]:
    """Items that float32 cannot rule out, then their distances in float64.

    With s = ‖i‖²/2 − q·i, which orders the items as the distance does, the k-th smallest minimum of the groups of items
    is no less than the k-th smallest s: whatever exceeds it by more than rounding can is out.
    """
    squares_I = torch.cat([block.double().square().sum(1) for block in items_ID.split(_BLOCK)])
    # |fl(s) − s| of a sum of D + 1 terms in any order (Higham, Accuracy and Stability, section 3.1), twice.
    unit, longest = torch.finfo(torch.float32).eps / 2, float(squares_I.amax().sqrt())
    slack_Q = 2 * (items_ID.shape[1] + 4) * unit * longest * (queries_QD.norm(dim=1) + longest / 2) * 1.01
    halves_I, k, block = squares_I.div(2).float(), min(k, len(items_ID)), min(len(items_ID), _BLOCK)

    def search(rows: slice) -> list[list[int]]:
        queries, slack = queries_QD[rows], slack_Q[rows]
        count, groups = len(queries), -(-block // _GROUP)
        score = torch.full((count, groups * _GROUP), torch.inf)
        best, kept = torch.full((count, k), torch.inf), []
        for start in range(0, len(items_ID), block):
            part = slice(start, min(start + block, len(items_ID)))
            width = part.stop - start
            score[:, width:] = torch.inf
            torch.addmm(halves_I[part], queries, items_ID[part].T, alpha=-1, out=score[:, :width])
            minima = score.view(count, groups, _GROUP).amin(2)
            best = torch.topk(torch.cat([best, minima], 1), k, dim=1, largest=False).values
            limit = best[:, -1] + slack
            query, group = torch.nonzero(minima <= limit[:, None], as_tuple=True)
            held = len(query) * _GROUP + sum(len(items) for _, items in kept)
            if count > 1 and held > _CELLS // 4:  # many as near as each other
                half = rows.start + count // 2
                return search(slice(rows.start, half)) + search(slice(half, rows.stop))
            near, column = torch.nonzero(
                score.view(count, groups, _GROUP)[query, group] <= limit[query, None], as_tuple=True
            )
            query, item = query[near], start + group[near] * _GROUP + column
            inside = item < part.stop
            kept.append((query[inside], item[inside]))
        query, item = torch.cat([q for q, _ in kept]), torch.cat([i for _, i in kept])
        distance = torch.cat(
            [
                (queries[q].double() - items_ID[i].double()).square_().sum(1)
                for q, i in zip(query.split(_PIECE), item.split(_PIECE), strict=True)
            ]
        )
        order = np.lexsort((item.numpy(), distance.numpy(), query.numpy()))
        first = np.searchsorted(query.numpy()[order], np.arange(count))
        return item.numpy()[order][first[:, None] + np.arange(k)].tolist()

    rows = max(1, _CELLS // block)
    starts = range(0, len(queries_QD), rows)
    return [row for at in starts for row in search(slice(at, min(at + rows, len(queries_QD))))]


def _by_rows(
    queries_Q: Vectors, items_I: Vectors, k: int, queries: int, weight_I: np.ndarray | None
) -> list[list[int]]:
    """All distances of a query at once: sparse vectors, and weights that need the nearest and the farthest.

    Items of equal vectors are computed once, so that their distances are equal bit for bit.
    """
    items = _distinct(items_I)
    count = len(items.squares_U if items.group_I is None else items.group_I)
    k, rows = min(k, count), max(1, _CELLS // count)
    weight = None if weight_I is None else torch.from_numpy(np.asarray(weight_I, dtype=np.float64))
    found: list[list[int]] = []
    for start in range(0, queries, rows):
        score = _distances(queries_Q[start : start + rows], items)
        if items.group_I is not None:
            score = score[:, items.group_I]
        if weight is not None:
            score -= score.amin(dim=1, keepdim=True)
            score /= score.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
            score *= weight
        # topk leaves the order of ties open, so it only gives the k-th value; the sort of those up to it is stable.
        limit = torch.topk(score, k, dim=1, largest=False).values[:, -1]
        for row_I, most in zip(score, limit, strict=True):
            near = torch.nonzero(row_I <= most).flatten()
            found.append(near[torch.sort(row_I[near], stable=True).indices[:k]].tolist())
    return found


class _Items(NamedTuple):
    columns_U: Vectors  # the different vectors
    squares_U: torch.Tensor  # their squared lengths in float64
    group_I: torch.Tensor | None  # for each item the place of its vector; None where all differ


def _distinct(items_I: Vectors) -> _Items:
    if isinstance(items_I, sparse.csr_matrix):
        # A sparse product adds in the order of the query's entries: equal rows already give equal bits.
        return _Items(sparse.csr_matrix(items_I.T), _unit_squares(items_I), None)
    rows = (items_I.float() + 0.0).contiguous().numpy()  # -0.0 becomes 0.0
    first: dict[bytes, int] = {}
    group = [first.setdefault(blake2b(row, digest_size=16).digest(), len(first)) for row in rows]
    if len(first) < len(rows):
        _, representative = np.unique(group, return_index=True)
        rows = rows[representative]
    columns_U = torch.from_numpy(rows)
    squares_U = torch.cat([block.double().square().sum(1) for block in columns_U.split(_BLOCK)])
    return _Items(columns_U, squares_U, torch.tensor(group) if len(rows) < len(group) else None)


def _distances(queries_Q: Vectors, items: _Items) -> torch.Tensor:
    """L2 distances (Q, U) in float64 from ‖q‖² + ‖i‖² − 2q·i."""
    if isinstance(queries_Q, sparse.csr_matrix) and isinstance(items.columns_U, sparse.csr_matrix):
        product = torch.from_numpy(sparse.csr_matrix(queries_Q @ items.columns_U).toarray())
        squares_Q = _unit_squares(queries_Q)
    else:
        assert isinstance(queries_Q, torch.Tensor) and isinstance(items.columns_U, torch.Tensor)
        queries_Q = queries_Q.double()
        squares_Q = queries_Q.square().sum(dim=1)
        product = torch.empty(len(queries_Q), len(items.columns_U), dtype=torch.float64)
        for start in range(0, len(items.columns_U), _BLOCK):
            product[:, start : start + _BLOCK] = queries_Q @ items.columns_U[start : start + _BLOCK].double().T
    return product.mul_(-2).add_(squares_Q[:, None]).add_(items.squares_U).clamp_(min=0).sqrt_()


def _unit_squares(rows: sparse.csr_matrix) -> torch.Tensor:
    """1, or 0 for an empty row: rounding must not order the many items that share nothing with a query."""
    return torch.from_numpy(np.diff(rows.indptr) > 0).double()
