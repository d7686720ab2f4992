"""From interactions to examples: the last titles and the one that came next, in three splits."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from rayrec.data import schema
from rayrec.data.mapped import SLICE, array, coded, computed, filled, mapped, numbers, places, slices, take

SPLITS = ("train", "valid", "test")


class Windows(NamedTuple):
    """All examples of each split, and every title occurrence of the training split (for popularity)."""

    splits: dict[str, pa.Table]
    titles: pa.Array  #: distinct titles of the data, those of the examples among them
    training_titles: pa.ChunkedArray
    counts: dict[str, int]


def borders(times: np.ndarray) -> tuple[int, int]:
    """Return where validation and test begin in the ascending ``times`` (N,) of the windows, nearest to 8:1:1.

    Windows of one time are never in two splits. ValueError: there are fewer than three different times.
    """
    starts = np.flatnonzero(times[1:] != times[:-1]) + 1
    if len(starts) < 2:
        raise ValueError(
            f"Found {len(times)} windows at {len(starts) + 1} different times, wanted at least 3 times to split 8:1:1. "
            "Add interactions, lower --history, or take --split leave_last_two, which reads their order alone."
        )
    valid = starts[:-1][np.abs(starts[:-1] - 0.8 * len(times)).argmin()]
    later = starts[starts > valid]
    return int(valid), int(later[np.abs(later - 0.9 * len(times)).argmin()])


def _ids(split: str, numbers: np.ndarray) -> pa.Array:
    return pa.array([f"{split}-{number:06d}" for number in numbers.tolist()])


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), values)


class _Log(NamedTuple):
    """Interactions in the order of users and then times, (N,) each, in files where that is as long as the log."""

    times: np.ndarray
    users: np.ndarray  #: places in ``names``
    titles: np.ndarray  #: places in ``known``
    ratings: np.ndarray | None  #: NaN where there is none; None where there are none at all
    names: pa.Array
    known: pa.Array
    place: np.ndarray  #: number of earlier interactions of the same user
    left: np.ndarray  #: number of later ones
    ends: np.ndarray  #: rows that can be targets, in the order of time


def _logged(interactions: pa.Table, least: int, wanted: int) -> tuple[_Log, np.ndarray]:
    """Return the log and the interactions of each user, (U,).

    Targets have ``least`` earlier rows and are of users with more than ``wanted``.
    """
    if not _in_time(interactions):
        times = numbers(interactions["timestamp"], np.int64)
        interactions = take(interactions, np.argsort(times, kind="stable"))  # file order breaks ties
    users, names = coded(interactions["user"])
    titles, known = coded(interactions["title"])
    order = filled(len(users), [np.argsort(users, kind="stable")])

    def ordered(column: np.ndarray) -> np.ndarray:
        return computed(len(order), lambda part: column[order[part]], column.dtype.type)

    rated = interactions["rating"].null_count < len(interactions)
    ratings = ordered(numbers(interactions["rating"], np.float32)) if rated else None
    times = ordered(numbers(interactions["timestamp"], np.int64))
    users, titles, sizes = ordered(users), ordered(titles), np.bincount(users)
    first = np.cumsum(sizes) - sizes
    place = computed(len(users), lambda part: np.arange(part.start, part.stop) - first[users[part]])
    left = computed(len(users), lambda part: sizes[users[part]] - 1 - place[part])
    ends = _ends(order, place, left, least, wanted)
    return _Log(times, users, titles, ratings, names, known, place, left, ends), sizes


def _in_time(interactions: pa.Table) -> bool:
    """Whether no row is earlier than the one before."""
    chunks = [chunk.to_numpy() for chunk in interactions["timestamp"].chunks if len(chunk)]
    between = all(a[-1] <= b[0] for a, b in itertools.pairwise(chunks))
    return between and all((a[1:] >= a[:-1]).all() for a in chunks)


def _ends(order: np.ndarray, place: np.ndarray, left: np.ndarray, least: int, wanted: int) -> np.ndarray:
    """The rows with ``least`` earlier ones, of users with more than ``wanted``, in the order of time."""
    row = array(len(order))
    for part in places(len(order)):
        row[order[part]] = np.arange(part.start, part.stop)
    found = [row[:0]]
    for part in places(len(order)):
        some = row[part]
        found.append(some[(place[some] >= least) & (place[some] + left[some] >= wanted)])
    return np.concatenate(found)


def _examples(log: _Log, ends: np.ndarray, past: np.ndarray, split: str) -> Iterator[pa.Table]:
    """Yield the examples with targets ``ends`` of ``log`` and ``past`` titles of history."""
    for start in range(0, len(ends), SLICE):
        rows, lengths = ends[start : start + SLICE], past[start : start + SLICE]
        before = np.arange(lengths.sum()) + np.repeat(rows - np.cumsum(lengths), lengths)
        ratings = pa.nulls(len(rows), pa.list_(pa.float32()))
        columns = {
            "example_id": _ids(split, start + np.arange(len(rows))),
            "split": pa.repeat(split, len(rows)),
            "user": log.names.take(pa.array(log.users[rows])),
            "timestamp": log.times[rows],
            "history": _lists(log.known.take(pa.array(log.titles[before])), lengths),
            "history_ratings": ratings if log.ratings is None else _lists(_rated(log.ratings[before]), lengths),
            "target": log.known.take(pa.array(log.titles[rows])),
            "target_rating": pa.nulls(len(rows)) if log.ratings is None else _rated(log.ratings[rows]),
            "candidates": pa.nulls(len(rows), pa.list_(pa.string())),
        }
        yield schema.check(pa.table(columns), schema.EXAMPLES, f"{split} windows")


def _rated(ratings: np.ndarray) -> pa.Array:
    """Ratings (N,) with NaN where there is none, as Arrow has them."""
    return pa.array(ratings, pa.float32(), mask=np.isnan(ratings))


def _by_time(log: _Log) -> tuple[list[np.ndarray], np.ndarray]:
    """Targets of each split and the rows that training may see, by global time 8:1:1.

    Let b1 < b2 be the times where validation and test begin. Every training target is earlier than b1, every validation
    target in [b1, b2), every test target at b2 or later; a training row, history included, holds nothing from b1 on;
    popularity and genre choice count the interactions before b1, of all users. Histories of validation rows reach back
    into training, and those of test rows into validation, as they do for a system in service.

    Where a source has positions instead of times, the position is the time: within a user (Amazon) or in a file
    (Steam). The guarantee holds, but one user's training row may then be younger than another's test row.
    """
    valid, test = borders(log.times[log.ends])
    return np.split(log.ends, [valid, test]), log.times < log.times[log.ends[valid]]


def _by_place(log: _Log) -> tuple[list[np.ndarray], np.ndarray]:
    """The last interaction of every user is a test target, the one before it a validation target (leave last two)."""
    left = log.left[log.ends]
    return [log.ends[left > 1], log.ends[left == 1], log.ends[left == 0]], log.left > 1


def _by_user(log: _Log, last_only: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """Users in the order of their last interaction, 8:1:1: training holds the first, whole (S-DPO, LLaRA)."""
    users = log.users[log.ends[log.left[log.ends] == 0]]  # in the order of time
    if len(users) < 3:
        raise ValueError(
            f"Found {len(users)} users with a past long enough, wanted at least 3 to split 8:1:1. Add interactions, or "
            "take another --split."
        )
    valid = min(max(1, round(0.8 * len(users))), len(users) - 2)
    test = min(max(valid + 1, round(0.9 * len(users))), len(users) - 1)
    part = np.full(log.users.max() + 1, -1)
    part[users] = np.repeat([0, 1, 2], [valid, test - valid, len(users) - test])
    of = part[log.users[log.ends]]
    shown = (of == 0) | (log.left[log.ends] == 0) | (not last_only)
    return [log.ends[(of == i) & shown] for i in range(3)], part[log.users] == 0


def cut(
    interactions: pa.Table, history: int, split: str = "time", least: int | None = None, targets: str = "last"
) -> Windows:
    """Cut interactions (``schema.INTERACTIONS``, in file order) into windows and split them.

    Each interaction with at least ``least`` earlier ones of its user (default: ``history``), by time and then file
    order, becomes the target of one window, whose history is the last ``history`` of them. ``split`` is `time`
    (:func:`_by_time`), `leave_last_two` (:func:`_by_place`) or `sequences` (:func:`_by_user`; ``targets``: whether
    validation and test hold the `last` interaction of a user or `all`). Raises ValueError: no user has a past long
    enough, all windows have one or two times, or a split is empty.
    """
    interactions = schema.check(interactions, schema.INTERACTIONS, "interactions")
    least = history if least is None else least
    wanted = least + (2 if split == "leave_last_two" else 0)  # so that a user's earliest test row has a training row
    log, sizes = _logged(interactions, least, wanted)
    if not len(sizes) or sizes.max() <= wanted:
        raise ValueError(
            f"No user has a past long enough: the longest has {sizes.max(initial=0)} interactions, wanted more than "
            f"{wanted}. {'Lower --history or --min-history, or name' if least > 1 else 'Name'} other data."
        )
    if split == "time":
        parts, seen = _by_time(log)
    elif split == "leave_last_two":
        parts, seen = _by_place(log)
    else:
        parts, seen = _by_user(log, targets == "last")
    short = sizes <= wanted
    counts = {
        "users": len(sizes),
        "users_too_short": int(short.sum()),
        "dropped_rows_of_short_users": int(sizes[short].sum()),
        "rows_only_in_histories": int(least * (~short).sum()),
    }
    tables = {
        name: mapped(_examples(log, rows, np.minimum(log.place[rows], history), name), schema.EXAMPLES)
        for name, rows in zip(SPLITS, parts, strict=True)
    }
    shown = pa.DictionaryArray.from_arrays(pa.array(log.titles[seen]), log.known)
    return Windows(tables, log.known, pa.chunked_array([shown]), counts)


def ready(windows: pl.DataFrame, history: int, drop: bool = False) -> Windows:
    """Take windows that the data has split itself (``Raw.windows``), histories cut to the last ``history``.

    The order and the splits are the data's own. Popularity counts the titles of the training rows, histories and
    targets. ``drop`` leaves out test rows that are training rows too, history and target, and validation rows that are
    training or test rows too, and counts them. Raises ValueError: a split has no rows; or there are such rows, without
    ``drop``.
    """
    windows = windows.with_columns(pl.col("history").list.tail(history))
    parts = {split: windows.filter(pl.col("split") == split) for split in SPLITS}
    counts = {"users": 0}
    for split, other in (("test", "train"), ("valid", "train"), ("valid", "test")):
        rows = parts[split]
        again = rows.join(parts[other].select("history", "target"), on=["history", "target"], how="semi")
        if len(again) and not drop:
            history_, target = again.select("history", "target").row(0)
            raise ValueError(
                f"{len(again)} of {len(rows)} {split} rows are {other} rows too, the first after {history_[-1]!r} asks "
                f"for {target!r}. Remove them from one split, or leave them out of {split} with --bad-rows drop."
            )
        counts[f"{split}_rows_also_in_{other}"] = len(again)
        parts[split] = rows.join(again, on=rows.columns, how="anti", maintain_order="left")
    splits = {}
    for split in SPLITS:
        part = parts[split]
        if part.is_empty():
            raise ValueError(f"The {split} split has no rows, wanted at least one. Name other data.")
        table = part.select("split", "user", "timestamp", "history", "target").to_arrow()
        table = table.append_column("example_id", _ids(split, part["timestamp"].to_numpy()))
        for name in ("history_ratings", "target_rating", "candidates"):
            table = table.append_column(name, pa.nulls(len(part)))
        splits[split] = mapped(slices(schema.check(table, schema.EXAMPLES, f"{split} rows")), schema.EXAMPLES)
    train = parts["train"]
    counts["users"] = pl.concat([part["user"] for part in parts.values()]).n_unique()
    titles = _titles(pl.concat(parts.values())).unique(maintain_order=True)
    return Windows(splits, _arrow(titles), pa.chunked_array([_arrow(_titles(train))]), counts)


def _titles(rows: pl.DataFrame) -> pl.Series:
    return pl.concat([rows["history"].explode(), rows["target"]])


def _arrow(titles: pl.Series) -> pa.Array:
    return titles.to_arrow().cast(pa.string())
