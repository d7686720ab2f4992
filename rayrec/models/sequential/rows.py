"""From examples to sequences of item numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pyarrow as pa

from rayrec.data.catalogue import Catalogue


def item_numbers(histories: Iterable[Iterable[str]], catalogue: Catalogue) -> list[list[int]]:
    """Numbers of the titles of each history; titles outside the catalogue are left out."""
    return [[catalogue.index[title] for title in one if title in catalogue.index] for one in histories]


def sequences_of(train: pa.Table, catalogue: Catalogue) -> list[list[int]]:
    """Rebuild what each user met from the windows of the training split (schema.EXAMPLES), in order.

    A window that does not follow the one before it begins a new sequence, so that nothing is joined that was not
    consecutive. Titles outside the catalogue are left out.
    """
    of_user: dict[str, list[dict]] = defaultdict(list)
    rows = train.select(["user", "timestamp", "history", "target"]).to_pylist()
    for row in sorted(rows, key=lambda row: row["timestamp"]):  # stable: the order of the rows breaks ties
        of_user[row["user"]].append(row)
    longest = max((len(row["history"]) for row in rows), default=0)
    whole: list[list[str]] = []
    for windows in of_user.values():
        expected: list[str] | None = None
        for row in windows:
            if row["history"] != expected:
                whole.append(list(row["history"]))
            whole[-1].append(row["target"])
            expected = [*row["history"], row["target"]][-longest:]
    return item_numbers(whole, catalogue)


def known_rows(rows: pa.Table, catalogue: Catalogue) -> tuple[list[list[int]], list[int]]:
    """Histories and targets of the rows whose target is in the catalogue."""
    kept = [row for row in rows.select(["history", "target"]).to_pylist() if row["target"] in catalogue.index]
    return item_numbers([row["history"] for row in kept], catalogue), [catalogue.index[row["target"]] for row in kept]
