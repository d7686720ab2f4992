"""Exact top 20 by L2 distance: rayrec's grounding against faiss's flat index and an argsort of numpy."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from benches import peak, reset_peak

PACKAGES, SIZE, COLUMNS, UNIT = ("faiss-cpu", "numpy"), "items", ("queries",), "queries per second"
FACTS, PAIRS = ("lists",), ()
DIMENSIONS, TOP = 384, 20


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    plan = [(2000, 200)] if args.quick else [(10**4, 10**4), (10**5, 10**4), (10**6, 10**4)]
    return [({"items": n, "queries": q, "dtype": "float32"}, ["faiss", "numpy"]) for n, q in plan]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return setting


def measure(contender: str, items: int, queries: int, dtype: str) -> dict[str, Any]:
    """Queries per second, peak memory beyond the vectors, and a sum that checks the found lists."""
    import numpy as np

    draw = np.random.default_rng(0)
    items_ID = draw.standard_normal((items, DIMENSIONS), dtype=np.float32)
    queries_QD = draw.standard_normal((queries, DIMENSIONS), dtype=np.float32)
    before, begun = reset_peak(), time.perf_counter()
    found = {"ours": ours, "faiss": faiss, "numpy": numpy}[contender](queries_QD, items_ID)
    seconds = time.perf_counter() - begun
    weighted = sum((place + 1) * int(item) for row in found for place, item in enumerate(row))
    return {"rate": queries / seconds, "memory": max(1, peak() - before), "lists": weighted}


def ours(queries_QD: Any, items_ID: Any) -> list[list[int]]:
    import torch

    from rayrec.grounding.neighbours import nearest

    return nearest(torch.from_numpy(queries_QD), torch.from_numpy(items_ID), TOP, [None] * len(queries_QD))


def faiss(queries_QD: Any, items_ID: Any) -> Any:
    import faiss as library
    import torch

    library.omp_set_num_threads(torch.get_num_threads())
    index = library.IndexFlatL2(DIMENSIONS)
    index.add(items_ID)
    return index.search(queries_QD, TOP)[1]


def numpy(queries_QD: Any, items_ID: Any) -> Any:
    """In pieces of at most 2²⁵ distances."""
    import numpy as np

    squares_I, found = (items_ID**2).sum(1), []
    size = max(1, 2**25 // len(items_ID))
    for start in range(0, len(queries_QD), size):
        distance_BI = squares_I - 2 * queries_QD[start : start + size] @ items_ID.T
        found.append(np.argsort(distance_BI, axis=1)[:, :TOP].copy())  # a view would keep the whole order
    return np.concatenate(found)
