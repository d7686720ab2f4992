"""Candidate sets: the target among items that the user never touched (S-DPO, RecPO, LLaRA)."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec.data.catalogue import Catalogue
from rayrec.data.mapped import each
from rayrec.data.scale import LIKED
from rayrec.data.schema import with_column
from rayrec.seeds import seed_of

#: Titles of a candidate set.
CANDIDATES = 20
#: Later titles of a user that RecPO looks at.
REACH = 10

#: From rows, wrong titles that each of them lists, touched or not: later titles of the user (RecPO).
Also = Callable[[pa.Table], Sequence[Sequence[str]]]
#: By user, the titles that candidate sets leave out.
LeftOut = Mapping[str, Collection[str]]


def with_candidates(
    rows: pa.Table, touched: LeftOut, catalogue: Catalogue, seed: int, also: Also | None = None
) -> pa.Table:
    """Fill the ``candidates`` of every row (schema.EXAMPLES). ValueError: a user touched too many items."""

    def filled(some: pa.Table) -> pa.Table:
        return with_column(some, "candidates", candidate_lists(some, touched, catalogue, seed, also))

    return each(rows, filled)


def candidate_lists(
    rows: pa.Table, touched: LeftOut, catalogue: Catalogue, seed: int, also: Also | None = None
) -> list[list[str]]:
    """The :func:`candidates` of every row."""
    listed = rows.select(["example_id", "user", "timestamp", "history", "target"]).to_pylist()
    more = also(rows) if also else [()] * len(listed)
    return [
        candidates(row, touched.get(row["user"], ()), catalogue, seed, also=extra)
        for row, extra in zip(listed, more, strict=True)
    ]


def candidates(
    example: Mapping[str, Any],
    touched: Collection[str],
    catalogue: Catalogue,
    seed: int,
    also: Sequence[str] = (),
) -> list[str]:
    """Return 20 distinct titles in random order: the target, and items neither ``touched`` nor in the history.

    Draw and order depend on (seed, user, time and id of the example) and never on the target, so a place in the list
    carries no information on a title. (S-DPO's published LastFM lists place each target at a constant position.) The id
    keeps apart the rows of one moment: lists that differ in the target alone would point at it. Raises ValueError:
    fewer than 19 items are left.
    """
    target, count = example["target"], CANDIDATES
    out = {catalogue.index[t] for t in (*touched, *example["history"], target) if t in catalogue.index}
    if len(catalogue) - len(out) < count - 1:
        raise ValueError(
            f"Example {example['example_id']}: found {len(catalogue) - len(out)} items that the user never met, wanted "
            f"{count - 1}. Take a larger catalogue."
        )
    # The target only decides what is left out.
    own = (example["user"], example["timestamp"], example["example_id"])
    draw = np.random.default_rng(seed_of(seed, "candidates", *own))
    place = int(draw.integers(count))
    # Items left out or drawn before are passed over: a draw without replacement, whatever the catalogue's size.
    known = [t for t in also if t in catalogue.index and t != target and t not in example["history"]]
    wrong = dict.fromkeys([catalogue.index[title] for title in known][: count - 1])
    given = len(wrong)
    while len(wrong) < count - 1:
        wrong |= dict.fromkeys(i for i in draw.integers(len(catalogue), size=2 * count).tolist() if i not in out)
    titles = [catalogue.titles[i] for i in list(wrong)[: count - 1]]
    if given:
        titles = [titles[i] for i in draw.permutation(len(titles))]
    return [*titles[:place], target, *titles[place:]]


def adherence_rows(test: pa.Table, touched: LeftOut, catalogue: Catalogue, seed: int, count: int) -> pa.Table:
    """Return up to ``count`` rows whose candidates hold all of the user's next titles, two or more of them liked.

    The target is the liked title that comes first: choosing it adheres to the user's order of preference (RecPO D.4).
    ``test`` holds all test windows (schema.EXAMPLES), those of a user in their order; rows are drawn with ``seed``.
    """
    of_user: dict[str, list[dict]] = defaultdict(list)
    for row in test.to_pylist():
        of_user[row["user"]].append(row)
    found: list[tuple[dict, list[str]]] = []
    for rows in of_user.values():
        for place, row in enumerate(rows):
            coming = rows[place : place + REACH]
            liked = list(dict.fromkeys(r["target"] for r in coming if (r["target_rating"] or 0) >= LIKED))
            if len(liked) >= 2 and not set(liked[:2]) & set(row["history"]):
                nearest = next(r for r in coming if r["target"] == liked[0])
                changed = {"example_id": f"adherence-{row['example_id']}", "split": "adherence"}
                changed |= {"target": liked[0], "target_rating": nearest["target_rating"]}
                found.append((row | changed, [r["target"] for r in coming]))
    found.sort(key=lambda one: one[0]["example_id"])
    draw = np.random.default_rng(seed_of(seed, "adherence"))
    kept = [found[i] for i in np.sort(draw.permutation(len(found))[:count])]
    table = pa.Table.from_pylist([row for row, _ in kept], schema=test.schema)
    coming = {row["example_id"]: titles for row, titles in kept}
    return with_candidates(
        table, touched, catalogue, seed, lambda some: [coming[name] for name in some["example_id"].to_pylist()]
    )
