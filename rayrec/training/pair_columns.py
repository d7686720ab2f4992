"""Columns of preference rows that only some objectives read, each filled by one function of :data:`COLUMNS`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from rayrec.data import Dataset, preferences, schema
from rayrec.data.ahead import NEVER, Ahead
from rayrec.data.catalogue import Catalogue
from rayrec.data.mapped import each
from rayrec.data.text import fold
from rayrec.grounding import Embedder, TitleEmbedder, ground
from rayrec.models import sequential

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Known:
    """Where columns are filled from."""

    data: Dataset
    best: bool
    """Of an item that comes again, its largest utility counts and not its first."""
    oracle: Path | None
    """Folder of the SASRec."""


class Column(NamedTuple):
    """How a column is filled."""

    fill: Callable[[pa.Table, Known], pa.Table]
    """Sets a column of schema.PREFERENCES, or appends another: a list of floats, one for each answer, the chosen first
    (:attr:`rayrec.objectives.Pairs.columns_BA`)."""
    of_batches: bool = False
    """Depends on the batches, so it is filled once rows have their ``step`` and ``slot``."""
    needs_ratings: bool = False


def fill(rows: pa.Table, names: Collection[str], known: Known, of_batches: bool = False) -> pa.Table:
    """Fill those columns among ``names`` that depend on the batches, or those that do not."""
    for name in sorted(names):
        if COLUMNS[name].of_batches == of_batches:
            rows = COLUMNS[name].fill(rows, known)
    return rows


def with_utilities(rows: pa.Table, ahead: Ahead, best: bool = False) -> pa.Table:
    """Fill ``scores`` with φ(s, d) = s/√d (RecPO section 3) of the chosen and then of the rejected answers."""
    import torch

    def scored(some: pa.Table) -> pa.Table:
        pairs = zip(some["chosen"].to_pylist(), some["rejected"].to_pylist(), ahead.places(some, best), strict=True)
        places = [[known.get(fold(t), NEVER) for t in (chosen, *rejected)] for chosen, rejected, known in pairs]
        return _set(some, "scores", [utility(*torch.tensor(one, dtype=torch.float32).T).tolist() for one in places])

    return each(rows, scored)


def ordered(rows: pa.Table) -> tuple[pa.Table, int]:
    """Return the rows with a rejected item that scores less than the chosen one, and the number of all other pairs.

    For objectives that are ``ordered``: a row without such a pair would stay in the mean of its batch as a 0.
    """
    dropped = 0

    def kept(some: pa.Table) -> pa.Table:
        nonlocal dropped
        worth = [[score < scores[0] for score in scores[1:]] for scores in some["scores"].to_pylist()]
        dropped += sum(one.count(False) for one in worth)
        return some.filter(pa.array([any(one) for one in worth], pa.bool_()))

    return each(rows, kept), dropped


def with_doubts(rows: pa.Table, oracle: Path, catalogue: Catalogue, embedder: Embedder) -> pa.Table:
    """Fill ``smoothing`` with ε = P_oracle(y_k ≻ y_w | x), cut to [0, 0.5), by a SASRec (RosePO).

    A rejected text outside the catalogue is judged as its nearest title.
    """
    import torch

    model = sequential.load(oracle)

    def doubted(some: pa.Table) -> pa.Table:
        pairs = some.select(["history", "chosen", "rejected"]).to_pylist()
        texts = list(dict.fromkeys(text for row in pairs for text in (row["chosen"], *row["rejected"])))
        away = [text for text in texts if text not in catalogue.index]
        nearest, doubts = ground(away, catalogue, embedder, k=1), []
        item = {text: catalogue.index[text] for text in texts if text in catalogue.index}
        item |= {text: catalogue.index[titles[0]] for text, titles in zip(away, nearest, strict=True) if titles}
        histories = sequential.item_numbers([row["history"] for row in pairs], catalogue)
        for start in range(0, len(pairs), 256):
            score_BI = sequential.scores(model, histories[start : start + 256])
            for row, score_I in zip(pairs[start : start + 256], score_BI, strict=True):
                places = [item.get(text) for text in (row["chosen"], *row["rejected"])]
                # Nothing is known of a text of white space, nor, then, of its pair.
                score_A = torch.stack([score_I[i] if i is not None else score_I.new_tensor(-torch.inf) for i in places])
                doubts.append(oracle_smoothing(score_A[:1], score_A[None, 1:])[0].nan_to_num(0.0).tolist())
        return _set(some, "smoothing", doubts)

    return each(rows, doubted)


def utility(score: Tensor, distance: Tensor) -> Tensor:
    """Return φ(s, d) = s / √d of ratings ``score`` and of ``distance``, interactions ahead (1 is the very next)."""
    return score / distance.sqrt()


def oracle_smoothing(score_chosen_B: Tensor, score_rejected_BK: Tensor) -> Tensor:
    """Return ε_BK = σ(s_k − s_w) cut to [0, 0.5), from the scores of an oracle such as SASRec (ours)."""
    import torch

    below_half = torch.nextafter(score_rejected_BK.new_tensor(0.5), score_rejected_BK.new_tensor(0.0))
    return (score_rejected_BK - score_chosen_B[:, None]).sigmoid().minimum(below_half)


def _set(rows: pa.Table, name: str, values: list[list[float]]) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, pa.array(values, schema.PREFERENCES.field(name).type))


def _scores(rows: pa.Table, known: Known) -> pa.Table:
    return with_utilities(rows, Ahead(known.data.train), known.best)


def _smoothing(rows: pa.Table, known: Known) -> pa.Table:
    assert known.oracle is not None, "the run trains an oracle where labels are smoothed"
    return with_doubts(rows, known.oracle, known.data.catalogue, TitleEmbedder(known.data.catalogue.titles))


COLUMNS: dict[str, Column] = {
    "scores": Column(_scores, needs_ratings=True),
    "smoothing": Column(_smoothing),
    "neighbour": Column(lambda rows, known: preferences.with_neighbours(rows), of_batches=True),
}
