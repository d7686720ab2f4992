"""The lists of a few test users, by the first and by the last policy of a run, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.report.rows import Row, caption, policies

#: Users that are shown, spread evenly over the test rows, and the length of their lists.
USERS, LENGTH = 10, 5
#: Rows among which a user is looked for whose list changed.
SEARCHED = 1000


class UserList(NamedTuple):
    """One test row: the history, oldest title first, the title that came next, and the lists before and after."""

    history: list[str]
    target: str
    before: list[str]
    after: list[str]


class UserLists(NamedTuple):
    """The lists of :data:`USERS` test rows, how they were made, and by which policies."""

    title: str
    first: str
    last: str
    users: list[UserList]
    shown: UserList | None
    """The first user whose list changed, of these or else of the first :data:`SEARCHED` rows; else the first of all."""


def ends(rows: Sequence[Row]) -> tuple[Row, Row] | None:
    """Return the first and the last evaluation on test rows, of one decoder; None without two."""
    tested = [row for row in policies(rows) if row.get("split", "test") == "test"]
    tested = [row for row in tested if row.get("decode") == tested[0].get("decode")]
    return (tested[0], tested[-1]) if len(tested) > 1 else None


def user_lists(folder: Path, rows: Sequence[Row]) -> UserLists | None:
    """Read the lists of a run by its ``rows`` of metrics.jsonl; None without two policies that were tested.

    Raises ValueError: a file of the run is missing or damaged.
    """
    if (tested := ends(rows)) is None:
        return None
    first, last = tested
    try:
        examples = pq.read_table(folder / "examples" / "test.parquet", columns=["example_id", "history", "target"])
        count = min(USERS, len(examples))
        users = _users(folder, examples.take(pa.array([i * len(examples) // count for i in range(count)])), tested)
        changed = [user for user in users if user.before != user.after]
        if not changed:
            changed = [
                user for user in _users(folder, examples.slice(0, SEARCHED), tested) if user.before != user.after
            ]
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{folder}: the lists of users are left out. ({error})") from error
    return UserLists(caption(first), first["policy"], last["policy"], users, next(iter([*changed, *users]), None))


def _users(folder: Path, examples: pa.Table, tested: tuple[Row, Row]) -> list[UserList]:
    """The rows of ``examples`` with the lists of two evaluations."""
    before, after = (_lists(folder / row["phase"] / "predictions.parquet", examples, row) for row in tested)
    columns = examples["history"].to_pylist(), examples["target"].to_pylist(), before, after
    return [UserList(history, target, *lists) for history, target, *lists in zip(*columns, strict=True)]


def _lists(path: Path, examples: pa.Table, row: Row) -> list[list[str]]:
    ids = examples["example_id"]
    chosen = pc.field("example_id").isin(ids.combine_chunks()) & (pc.field("decode") == row["decode"])
    found = pq.read_table(path, columns=["example_id", "titles"], filters=chosen)
    titles = dict(zip(found["example_id"].to_pylist(), found["titles"].to_pylist(), strict=True))
    return [titles.get(one, [])[:LENGTH] for one in ids.to_pylist()]
