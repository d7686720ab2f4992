"""Metrics of top-k lists (SPRec section 5.1): accuracy, diversity, over-recommendation and genre fairness.

Every metric is a function of an :class:`~rayrec.metrics.outcome.Outcome` and k; METRICS names them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.metrics.choice import choice_metrics
from rayrec.metrics.div_ratio import div_ratio, div_ratio_without
from rayrec.metrics.genre_unfairness import dgu, genre_share, mgu
from rayrec.metrics.hit_ratio import hit_ratio, hits
from rayrec.metrics.ndcg import gains, ndcg
from rayrec.metrics.or_ratio import or_ratio, or_ratio_without
from rayrec.metrics.outcome import Outcome, outcome, ranks

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue

METRICS: dict[str, Callable[[Outcome, int], float | None]] = {
    "HR": hit_ratio,
    "NDCG": ndcg,
    "DivRatio": div_ratio,
    "ORRatio": or_ratio,
    "MGU": mgu,
    "DGU": dgu,
}

__all__ = ["METRICS", "div_ratio_without", "evaluate", "evaluate_splits", "or_ratio_without", "per_row"]


def evaluate(predictions: pa.Table, examples: pa.Table, catalogue: Catalogue, top_k: tuple[int, ...]) -> dict[str, Any]:
    """Compute every metric for every k over the N rows of ``predictions``, and count what the metrics cannot show.

    ``predictions`` and ``examples`` follow schema.PREDICTIONS and schema.EXAMPLES and hold the same example ids.

    Returns:
        N; ``NAME@k`` for each of METRICS (None where undefined, see the metric); ``filled@k`` = M/(kN), the share of
        places that were filled (None for N = 0); ``no_genre@k``, returned items without a selected genre; ``empty``,
        rows without any title; ``target_outside``, targets that are not in the catalogue; ``history_outside`` and
        ``history_no_genre``, history titles outside the catalogue, and inside it without a selected genre;
        ``genres``: the ``selected`` genres and their shares ``GH`` (histories) and ``GP@k`` (lists), None without
        mass.

    Raises:
        ValueError: a k below 1, ids or targets that do not match, a list with a repeated or an unknown title.
    """
    if not top_k or min(top_k) < 1:
        raise ValueError(f"Found top_k = {top_k}, wanted list lengths of 1 or more. Set --top-k, as in --top-k 1 5 10.")
    result, n = outcome(predictions, examples, catalogue), predictions.num_rows
    known = pc.call_function("is_in", [predictions["target"]], pc.SetLookupOptions(pa.array(catalogue.titles)))
    lacks_I = result.genre_IG.sum(axis=1) == 0
    genres: dict[str, Any] = {"selected": list(catalogue.selected_genres)}
    genres["GH"] = _named(genre_share(result.history_I, result.genre_IG), catalogue)
    numbers: dict[str, Any] = {"N": n}
    for k in top_k:
        returned_I = result.returned(k)
        numbers |= {f"{name}@{k}": metric(result, k) for name, metric in METRICS.items()}
        numbers[f"filled@{k}"] = float(returned_I.sum() / (k * n)) if n else None
        numbers[f"no_genre@{k}"] = int(returned_I[lacks_I].sum())
        genres[f"GP@{k}"] = _named(genre_share(returned_I, result.genre_IG), catalogue)
    return numbers | {
        "empty": n - int((result.items_NL >= 0).any(axis=1).sum()),
        "target_outside": n - sum(chunk.true_count for chunk in known.chunks),
        "history_outside": result.outside,
        "history_no_genre": int(result.history_I[lacks_I].sum()),
        "genres": genres,
    }


def evaluate_splits(
    predictions: pa.Table, splits: dict[str, pa.Table], catalogue: Catalogue, top_k: tuple[int, ...], chosen: bool
) -> list[dict[str, Any]]:
    """Compute the metrics of each split, test first, from the predictions of all: the rows of one after another's.

    ``chosen``: the lists are choices from candidates, whose metrics of their own are added.
    """
    start, records = 0, []
    for split, examples in splits.items():
        own = predictions.slice(start, len(examples))
        start += len(examples)
        found = evaluate(own, examples, catalogue, top_k)
        records.append({"split": split, **found, **(choice_metrics(own, examples) if chosen else {})})
    return sorted(records, key=lambda record: record["split"] != "test")


def per_row(predictions: pa.Table, k: int) -> tuple[np.ndarray, np.ndarray]:
    """HR@k and NDCG@k of every row, (N,) float64 each, in row order; their means are the metrics, for the bootstrap."""
    rank_N = ranks(predictions)
    return hits(rank_N, k), gains(rank_N, k)


def _named(share_G: np.ndarray | None, catalogue: Catalogue) -> dict[str, float] | None:
    return None if share_G is None else dict(zip(catalogue.selected_genres, share_G.tolist(), strict=True))
