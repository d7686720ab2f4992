"""What is known about the items of a preference pair besides their titles: utilities, and an oracle's doubt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import torch

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue
from rayrec.grounding import Embedder, fold, ground
from rayrec.models import sequential
from rayrec.objectives.recpo import utility
from rayrec.objectives.rosepo import oracle_smoothing

#: RecPO's rating and distance of an item that the user never came to.
NEVER = (3.0, 11)

#: For an example id, the rating and the distance of what its user came to next, by folded title; its own target first.
Ahead = Mapping[str, Mapping[str, tuple[float, int]]]


def ahead(train: pa.Table, reach: int = NEVER[1] - 1, best: bool = False) -> Ahead:
    """Ratings and distances (1 is the very next) of the ``reach`` items that follow each training example's history.

    Only the training split is read, so the last examples of a user see fewer. A missing rating counts as 3. Of an item
    that comes again the first time counts, or with ``best`` that of the largest s/√d, as :func:`retarget` chooses it.
    """
    ids, titles = train["example_id"].to_pylist(), [fold(title) for title in train["target"].to_pylist()]
    ratings = train["target_rating"].to_pylist()
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for row, coming in _coming(train, reach):
        items: dict[str, tuple[float, int]] = {}
        for distance, i in enumerate(coming, start=1):
            rating = NEVER[0] if ratings[i] is None else ratings[i]
            known = items.setdefault(titles[i], (rating, distance))
            if best and rating / distance**0.5 > known[0] / known[1] ** 0.5:
                items[titles[i]] = (rating, distance)
        found[ids[row]] = items
    return found


def later_titles(train: pa.Table, reach: int = NEVER[1] - 1) -> dict[str, list[str]]:
    """The ``reach`` titles that follow each training example's history, by example id, its own target first."""
    ids, titles = train["example_id"].to_pylist(), train["target"].to_pylist()
    return {ids[row]: [titles[i] for i in coming] for row, coming in _coming(train, reach)}


def _coming(train: pa.Table, reach: int) -> Iterator[tuple[int, list[int]]]:
    """Yield every row number with those of its user's next ``reach`` rows in the order of time, itself first."""
    of_user: dict[str, list[int]] = defaultdict(list)
    users, times = train["user"].to_pylist(), train["timestamp"].to_pylist()
    for i in sorted(range(len(train)), key=lambda i: times[i]):  # stable: the order of the rows breaks ties
        of_user[users[i]].append(i)
    for rows in of_user.values():
        yield from ((row, rows[place : place + reach]) for place, row in enumerate(rows))


def retarget(train: pa.Table, how: str, least: float, reach: int = NEVER[1] - 1) -> tuple[pa.Table, list[list[str]]]:
    """Ask each row of ``train`` (schema.EXAMPLES) for the best of its user's next ``reach`` titles (RecPO section 3).

    ``how`` is `utility`, the largest s/√d (the nearer one of equals), or `nearest`, the first rated ``least`` or more;
    where there is none the row keeps its target. Returns the rows and, for each, all the titles that came next.
    """
    titles, ratings = train["target"].to_pylist(), train["target_rating"].to_pylist()
    worth = [NEVER[0] if rating is None else rating for rating in ratings]
    chosen, later = list(range(len(train))), [[] for _ in range(len(train))]
    for row, coming in _coming(train, reach):
        later[row] = [titles[i] for i in coming]
        if how == "utility":
            place = max(range(len(coming)), key=lambda d: worth[coming[d]] / (d + 1) ** 0.5)
        else:
            place = next((d for d, i in enumerate(coming) if worth[i] >= least), 0)
        chosen[row] = coming[place]
    for name in ("target", "target_rating"):
        at = train.column_names.index(name)
        train = train.set_column(at, train.schema.field(at), train[name].take(pa.array(chosen)))
    return train, later


def with_utilities(rows: pa.Table, known: Ahead) -> pa.Table:
    """Fill ``scores`` with φ(s, d) = s/√d (RecPO section 3) of the chosen and then of the rejected answers."""
    pairs = rows.select(["example_id", "chosen", "rejected"]).to_pylist()
    titles = [[fold(title) for title in (row["chosen"], *row["rejected"])] for row in pairs]
    places = [[known[row["example_id"]].get(t, NEVER) for t in one] for row, one in zip(pairs, titles, strict=True)]
    scores = [utility(*torch.tensor(one, dtype=torch.float32).T).tolist() for one in places]
    return _set(rows, "scores", scores)


def ordered(rows: pa.Table) -> tuple[pa.Table, int]:
    """The rows with a rejected item that is worth less than the chosen one, and the number of all other pairs.

    `odpo` drops these pairs; a row without any other would stay in the mean of its batch as a 0.
    """
    worth = [[score < scores[0] for score in scores[1:]] for scores in rows["scores"].to_pylist()]
    return rows.filter(pa.array([any(one) for one in worth], pa.bool_())), sum(one.count(False) for one in worth)


def with_doubts(rows: pa.Table, oracle: Path, catalogue: Catalogue, embedder: Embedder) -> pa.Table:
    """Fill ``smoothing`` with ε = P_oracle(y_k ≻ y_w | x), cut to [0, 0.5), by a SASRec (RosePO; METHODS section 2).

    A rejected text outside the catalogue is judged as its nearest title.
    """
    pairs = rows.select(["history", "chosen", "rejected"]).to_pylist()
    texts = list(dict.fromkeys(text for row in pairs for text in (row["chosen"], *row["rejected"])))
    away = [text for text in texts if text not in catalogue.index]
    nearest = ground(away, catalogue, embedder, k=1)
    item = {text: catalogue.index[text] for text in texts if text in catalogue.index}
    item |= {text: catalogue.index[titles[0]] for text, titles in zip(away, nearest, strict=True) if titles}
    model, doubts = sequential.load(oracle), []
    histories = sequential.item_numbers([row["history"] for row in pairs], catalogue)
    for start in range(0, len(pairs), 256):
        score_BI = sequential.scores(model, histories[start : start + 256])
        for row, score_I in zip(pairs[start : start + 256], score_BI, strict=True):
            places = [item.get(text) for text in (row["chosen"], *row["rejected"])]
            # Nothing is known of a text of white space, nor, then, of its pair.
            score_A = torch.stack([score_I[i] if i is not None else score_I.new_tensor(-torch.inf) for i in places])
            doubts.append(oracle_smoothing(score_A[:1], score_A[None, 1:])[0].nan_to_num(0.0).tolist())
    return _set(rows, "smoothing", doubts)


def _set(rows: pa.Table, name: str, values: list[list[float]]) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, pa.array(values, schema.PREFERENCES.field(name).type))
