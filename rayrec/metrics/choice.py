"""Metrics of a choice from candidates that the top-k lists alone do not have (S-DPO, RecPO)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.candidates import DISLIKED, LIKED
from rayrec.metrics.hit_ratio import hits
from rayrec.metrics.outcome import ranks


def choice_metrics(predictions: pa.Table, examples: pa.Table) -> dict[str, float | int | None]:
    """Return what is told of the choices of ``predictions``, made for ``examples`` in the same order.

    ``ValidRatio``: share of rows whose answer is exactly one candidate. ``HR@1_liked``: HR@1 where the target is rated
    4 or more (RecPO evaluates on these), ``N_liked`` rows. ``AvoidanceRate`` (RecPO D.4): share of the ``N_disliked``
    rows, the target rated 2 or less, whose answer is exactly one candidate and not the target. None without such rows.
    Of the rows of :func:`rayrec.data.candidates.adherence_rows` it is the ``AdherenceRate`` (RecPO D.4) alone.
    """
    if examples["split"][:1].to_pylist() == ["adherence"]:
        return {"AdherenceRate": _mean(hits(ranks(predictions), 1))}
    valid_N = pc.call_function("list_value_length", [predictions["titles"]]).to_numpy() > 0
    hit_N, rating_N = hits(ranks(predictions), 1), examples["target_rating"].to_numpy().astype(float)
    liked_N, disliked_N = rating_N >= LIKED, rating_N <= DISLIKED
    return {
        "ValidRatio": _mean(valid_N),
        "HR@1_liked": _mean(hit_N[liked_N]),
        "N_liked": int(liked_N.sum()),
        "AvoidanceRate": _mean((valid_N & (hit_N == 0))[disliked_N]),
        "N_disliked": int(disliked_N.sum()),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
