"""Metrics of top-k lists (SPRec section 5.1) and of choices from candidates; all code reads METRICS."""

from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.data.catalogue import Catalogue
from rayrec.data.schema import places
from rayrec.metrics.base import Metric
from rayrec.metrics.choice import ADHERENCE, AVOIDANCE, HR_LIKED, VALID
from rayrec.metrics.cold import HR_COLD, NDCG_COLD
from rayrec.metrics.div_ratio import DIV_RATIO
from rayrec.metrics.genre_unfairness import DGU, MGU, genre_share
from rayrec.metrics.hit_ratio import HR
from rayrec.metrics.ndcg import NDCG
from rayrec.metrics.or_ratio import OR_RATIO
from rayrec.metrics.outcome import Outcome, answers, outcome
from rayrec.metrics.titles import LOST_MASS, LOST_TARGETS

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(HR, NDCG, DIV_RATIO, OR_RATIO, MGU, DGU, VALID, HR_LIKED, AVOIDANCE, ADHERENCE),
        *(LOST_MASS, LOST_TARGETS, HR_COLD, NDCG_COLD),
    )
}
#: The metric that chooses among policies, epochs and decoding settings, on validation rows.
BEST = NDCG
#: Accuracy against diversity; the first pair has the Pareto front.
TRADE_OFFS = ((NDCG, DIV_RATIO), (NDCG, OR_RATIO))
#: The metric of a single choice from candidates, at k = 1. There NDCG equals it: both are 1 for a hit.
FIRST, SAME_AT_1 = HR, NDCG

__all__ = ["BEST", "FIRST", "METRICS", "SAME_AT_1", "TRADE_OFFS", "Metric", "answers", "evaluate", "evaluate_splits"]


def evaluate(
    predictions: pa.Table, examples: pa.Table, catalogue: Catalogue, top_k: tuple[int, ...], chosen: bool = False
) -> dict[str, Any]:
    """Compute every metric for every k over the N rows of ``predictions``, and the counts beside them.

    ``predictions`` and ``examples`` follow schema.PREDICTIONS and schema.EXAMPLES and hold the same example ids.
    ``chosen``: the lists are choices from candidates, which have metrics of their own, last in the result. The counts:
    ``filled@k`` = M/(kN), the share of places that were filled (None for N = 0); ``no_genre@k``, returned items without
    a selected genre; ``empty``, rows without any title; ``N_cold``, targets of the catalogue that training never saw,
    whose rows have metrics of their own if there are any; ``target_outside`` and ``history_outside``, titles outside
    the catalogue; ``history_no_genre``; ``genres``, the ``selected`` ones and their shares ``GH`` (histories) and
    ``GP@k`` (lists), None without mass.

    Raises ValueError: a k below 1, ids or targets that do not match, a list with a repeated or an unknown title.
    """
    if not top_k or min(top_k) < 1:
        raise ValueError(f"Found top_k = {top_k}, wanted list lengths of 1 or more. Set --top-k, as in --top-k 1 5 10.")
    result, n = outcome(predictions, examples, catalogue), predictions.num_rows
    outside_N = places(predictions["target"], pa.array(catalogue.titles)) < 0
    lacks_I = result.genre_IG.sum(axis=1) == 0
    genres: dict[str, Any] = {"selected": list(catalogue.selected_genres)}
    genres["GH"] = _named(genre_share(result.history_I, result.genre_IG), catalogue)
    numbers: dict[str, Any] = {"N": n}
    for k in top_k:
        returned_I = result.returned(k)
        numbers |= _computed(result, "always", k) | (_computed(result, "cold", k) if result.cold_N.any() else {})
        numbers[f"filled@{k}"] = float(returned_I.sum() / (k * n)) if n else None
        numbers[f"no_genre@{k}"] = int(returned_I[lacks_I].sum())
        genres[f"GP@{k}"] = _named(genre_share(returned_I, result.genre_IG), catalogue)
    numbers |= {
        "empty": n - int((result.length_N > 0).sum()),
        "N_cold": int(result.cold_N.sum()),
        "target_outside": int(outside_N.sum()),
        "history_outside": result.outside,
        "history_no_genre": int(result.history_I[lacks_I].sum()),
        "genres": genres,
    }
    if not np.isnan([*result.kept_N, *result.ahead_N]).all():
        numbers |= {name: value for name, value in _computed(result, "measured", 1).items() if value is not None}
    if not chosen:
        return numbers
    adherence = examples["split"][:1].to_pylist() == ["adherence"]
    return numbers | _computed(result, "adherence" if adherence else "candidates", 1)


def evaluate_splits(
    predictions: pa.Table, splits: dict[str, pa.Table], catalogue: Catalogue, top_k: tuple[int, ...], chosen: bool
) -> list[dict[str, Any]]:
    """:func:`evaluate` each split, test first; the rows of one split follow another's in ``predictions``."""
    start, records = 0, []
    for split, examples in splits.items():
        own = predictions.slice(start, len(examples))
        start += len(examples)
        records.append({"split": split, **evaluate(own, examples, catalogue, top_k, chosen)})
    return sorted(records, key=lambda record: record["split"] != "test")


def _computed(result: Outcome, when: str, k: int) -> dict[str, float | int | None]:
    """The metrics of one kind at k, by their keys, and the counts of their rows."""
    found: dict[str, float | int | None] = {}
    for metric in METRICS.values():
        if metric.when == when:
            found[metric.key(k)] = metric.compute(result, k)
            if metric.count and metric.of_rows:
                found[metric.count] = int((~np.isnan(metric.of_rows(result, k))).sum())
    return found


def _named(share_G: np.ndarray | None, catalogue: Catalogue) -> dict[str, float] | None:
    return None if share_G is None else dict(zip(catalogue.selected_genres, share_G.tolist(), strict=True))
