"""The titles that a user came to next, and targets chosen from them (RecPO section 3)."""

import numpy as np
import pyarrow as pa

from rayrec.data.mapped import each, take
from rayrec.data.schema import with_column
from rayrec.data.text import fold

#: RecPO's rating and distance of an item that the user never came to.
NEVER = (3.0, 11)


class Ahead:
    """By row of ``train`` (schema.EXAMPLES, by ``number``) its target and the user's next ones, ten titles at most."""

    def __init__(self, train: pa.Table):
        self._rows = train.select(["target", "target_rating"])
        users = train["user"].dictionary_encode().unify_dictionaries().combine_chunks().indices.to_numpy()
        order = np.lexsort((train["timestamp"].to_numpy(), users))  # stable: the order of the rows breaks ties
        self._next = np.full(len(train), -1)
        same = users[order[1:]] == users[order[:-1]]
        self._next[order[:-1][same]] = order[1:][same]

    def of(self, rows: pa.Table) -> list[list[tuple[str, float]]]:
        """Titles and ratings of the next items, by row; a missing rating counts as 3."""
        number, found = rows["number"].to_numpy(), []
        for _ in range(1, NEVER[1]):
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

        Of an item that comes again the first time counts, or with ``best`` that of the largest s/√d.
        """
        found = []
        for coming in self.of(rows):
            items: dict[str, tuple[float, int]] = {}
            for distance, (title, rating) in enumerate(coming, start=1):
                known = items.setdefault(fold(title), (rating, distance))
                if best and rating / distance**0.5 >= known[0] / known[1] ** 0.5:
                    items[fold(title)] = (rating, distance)
            found.append(items)
        return found


def retarget(rows: pa.Table, ahead: Ahead, how: str, least: float) -> pa.Table:
    """Ask each row (schema.EXAMPLES and ``number``) for the best of its user's next titles (RecPO section 3).

    ``how`` is `utility`, the largest s/√d (of equals the later one, as in RecPO's release), or `nearest`, the first
    rated ``least`` or more; where there is none the row keeps its target.
    """

    def change(some: pa.Table) -> pa.Table:
        chosen = []
        for coming in ahead.of(some):
            if how == "utility":
                place = max(range(len(coming)), key=lambda d: (coming[d][1] / (d + 1) ** 0.5, d))
            else:
                place = next((d for d, (_, rating) in enumerate(coming) if rating >= least), 0)
            chosen.append(coming[place])
        some = with_column(some, "target", [title for title, _ in chosen])
        return with_column(some, "target_rating", [rating for _, rating in chosen])

    return each(rows, change)
