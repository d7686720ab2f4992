"""What is known about the items of a preference pair besides their titles: utilities, and an oracle's doubt."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch

from rayrec.data import schema
from rayrec.data.ahead import NEVER, Ahead
from rayrec.data.catalogue import Catalogue
from rayrec.data.mapped import each
from rayrec.grounding import Embedder, fold, ground
from rayrec.models import sequential
from rayrec.objectives.recpo import utility
from rayrec.objectives.rosepo import oracle_smoothing


def with_utilities(rows: pa.Table, ahead: Ahead, best: bool = False) -> pa.Table:
    """Fill ``scores`` with φ(s, d) = s/√d (RecPO section 3) of the chosen and then of the rejected answers."""

    def scored(some: pa.Table) -> pa.Table:
        pairs = zip(some["chosen"].to_pylist(), some["rejected"].to_pylist(), ahead.places(some, best), strict=True)
        places = [[known.get(fold(t), NEVER) for t in (chosen, *rejected)] for chosen, rejected, known in pairs]
        return _set(some, "scores", [utility(*torch.tensor(one, dtype=torch.float32).T).tolist() for one in places])

    return each(rows, scored)


def ordered(rows: pa.Table) -> tuple[pa.Table, int]:
    """The rows with a rejected item that is worth less than the chosen one, and the number of all other pairs.

    `odpo` drops these pairs; a row without any other would stay in the mean of its batch as a 0.
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


def _set(rows: pa.Table, name: str, values: list[list[float]]) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, pa.array(values, schema.PREFERENCES.field(name).type))
