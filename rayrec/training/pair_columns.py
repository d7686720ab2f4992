"""What is known about the items of a preference pair besides their titles: utilities, and an oracle's doubt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue
from rayrec.data.mapped import each, take
from rayrec.grounding import Embedder, fold, ground
from rayrec.models import sequential
from rayrec.objectives.recpo import utility
from rayrec.objectives.rosepo import oracle_smoothing

#: RecPO's rating and distance of an item that the user never came to.
NEVER = (3.0, 11)


class Ahead:
    """What each user came to next: for a row of ``train`` (schema.EXAMPLES) its target and those of the rows after it.

    These are ``reach`` titles, or fewer: only the training split is read. Rows have a column ``number``, their place in
    ``train``.
    """

    def __init__(self, train: pa.Table, reach: int = NEVER[1] - 1):
        self._rows, self.reach = train.select(["target", "target_rating"]), reach
        users = train["user"].dictionary_encode().unify_dictionaries().combine_chunks().indices.to_numpy()
        order = np.lexsort((train["timestamp"].to_numpy(), users))  # stable: the order of the rows breaks ties
        self._next = np.full(len(train), -1)
        same = users[order[1:]] == users[order[:-1]]
        self._next[order[:-1][same]] = order[1:][same]

    def of(self, rows: pa.Table) -> list[list[tuple[str, float]]]:
        """Titles and ratings of what came next, by row; a missing rating counts as 3."""
        number, found = rows["number"].to_numpy(), []
        for _ in range(self.reach):
            known = take(self._rows, np.maximum(number, 0))
            ratings = [NEVER[0] if rating is None else rating for rating in known["target_rating"].to_pylist()]
            found.append(zip(number.tolist(), known["target"].to_pylist(), ratings, strict=True))
            number = np.where(number < 0, -1, self._next[number])
        return [[(title, rating) for i, title, rating in one if i >= 0] for one in zip(*found, strict=True)]

    def titles(self, rows: pa.Table) -> list[list[str]]:
        """The titles alone."""
        return [[title for title, _ in one] for one in self.of(rows)]

    def places(self, rows: pa.Table, best: bool = False) -> list[dict[str, tuple[float, int]]]:
        """Rating and distance (1 is the very next) of every title, folded, by row.

        Of an item that comes again the first time counts, or with ``best`` that of the largest s/√d, as
        :func:`retarget` chooses it.
        """
        found = []
        for coming in self.of(rows):
            items: dict[str, tuple[float, int]] = {}
            for distance, (title, rating) in enumerate(coming, start=1):
                known = items.setdefault(fold(title), (rating, distance))
                if best and rating / distance**0.5 > known[0] / known[1] ** 0.5:
                    items[fold(title)] = (rating, distance)
            found.append(items)
        return found


def retarget(rows: pa.Table, ahead: Ahead, how: str, least: float) -> pa.Table:
    """Ask each row (schema.EXAMPLES and ``number``) for the best of its user's next titles (RecPO section 3).

    ``how`` is `utility`, the largest s/√d (the nearer one of equals), or `nearest`, the first rated ``least`` or more;
    where there is none the row keeps its target.
    """

    def asked(some: pa.Table) -> pa.Table:
        chosen = []
        for coming in ahead.of(some):
            if how == "utility":
                place = max(range(len(coming)), key=lambda d: coming[d][1] / (d + 1) ** 0.5)
            else:
                place = next((d for d, (_, rating) in enumerate(coming) if rating >= least), 0)
            chosen.append(coming[place])
        for name, values in zip(("target", "target_rating"), zip(*chosen, strict=True), strict=False):
            at = some.column_names.index(name)
            some = some.set_column(at, some.schema.field(at), pa.array(values, some.schema.field(at).type))
        return some

    return each(rows, asked)


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
