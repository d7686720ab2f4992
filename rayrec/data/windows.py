"""From interactions to examples: ten titles and the one that came next, split by global time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from rayrec.data import schema

SPLITS = ("train", "valid", "test")
#: Windows made at once: bounds memory, and a column of text must stay below 2 GiB.
CHUNK = 1 << 18


class Windows(NamedTuple):
    """All examples of each split, and every title occurrence of the training split (for popularity)."""

    splits: dict[str, pa.Table]
    training_titles: pa.ChunkedArray
    counts: dict[str, int]


def borders(times: np.ndarray) -> tuple[int, int]:
    """Return where validation and test begin in the ascending ``times`` (N,) of the windows, nearest to 8:1:1.

    Both borders lie between two different times, so windows of one time are never in two splits.

    Raises:
        ValueError: there are fewer than three different times.
    """
    starts = np.flatnonzero(np.diff(times)) + 1
    if len(starts) < 2:
        raise ValueError(
            f"Found {len(times)} windows at {len(starts) + 1} different times, wanted at least 3 times to split 8:1:1. "
            "Add interactions, or lower --history."
        )
    valid = starts[:-1][np.abs(starts[:-1] - 0.8 * len(times)).argmin()]
    later = starts[starts > valid]
    return int(valid), int(later[np.abs(later - 0.9 * len(times)).argmin()])


def _ids(split: str, numbers: np.ndarray) -> pa.Array:
    return pa.array([f"{split}-{number:06d}" for number in numbers.tolist()])


def _lists(values: pa.Array, width: int) -> pa.Array:
    return pa.ListArray.from_arrays(np.arange(0, len(values) + 1, width, dtype=np.int32), values)


def _examples(table: pa.Table, ends: np.ndarray, history: int, split: str) -> pa.Table:
    """Return the examples whose targets are the rows ``ends`` of ``table``, which is ordered by user and then time."""
    rated = table["rating"].null_count < len(table)
    chunks = [schema.EXAMPLES.empty_table()]
    for start in range(0, len(ends), CHUNK):
        rows = ends[start : start + CHUNK]
        target = table.take(rows)
        before = (rows[:, None] - np.arange(history, 0, -1)).ravel()
        past = table.select(["title", "rating"]).take(before).combine_chunks()
        ratings = _lists(past["rating"].chunk(0), history) if rated else pa.nulls(len(rows), pa.list_(pa.float32()))
        columns = {
            "example_id": _ids(split, start + np.arange(len(rows))),
            "split": pa.repeat(split, len(rows)),
            "user": target["user"],
            "timestamp": target["timestamp"],
            "history": _lists(past["title"].chunk(0), history),
            "history_ratings": ratings,
            "target": target["title"],
            "target_rating": target["rating"],
        }
        chunks.append(schema.check(pa.table(columns), schema.EXAMPLES, f"{split} windows"))
    return pa.concat_tables(chunks)


def cut(interactions: pa.Table, history: int) -> Windows:
    """Cut interactions (``schema.INTERACTIONS``, in file order) into windows and split them by global time 8:1:1.

    Each interaction with ``history`` earlier ones of its user, by time and then file order, becomes the target of one
    window. Let b1 < b2 be the times where validation and test begin. Guaranteed: every training target is earlier than
    b1, every validation target in [b1, b2), every test target at b2 or later; a training row, history included, holds
    nothing from b1 on; popularity and genre choice count the interactions before b1 (of all users, those with too short
    a past included). Histories of validation and test rows reach back as far as they do for a system in service: into
    training, and those of test rows into validation.

    Where a source has positions instead of times, global time is the position: within a user (Amazon), training holds
    everybody's early interactions and test the late ones of long-time users; in a file (Steam), training holds the
    users at its top. The guarantee stands, but one user's training row may then be younger than another's test row.

    Raises:
        ValueError: no user has more than ``history`` interactions, or all windows have one or two times.
    """
    interactions = schema.check(interactions, schema.INTERACTIONS, "interactions")
    users = interactions["user"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    order = np.lexsort((interactions["timestamp"].to_numpy(), users))  # stable: file order breaks ties
    table, users = interactions.take(order), users[order]
    sizes = np.bincount(users)
    if not len(sizes) or sizes.max() <= history:
        raise ValueError(
            f"No user has a past long enough: the longest has {sizes.max(initial=0)} interactions, wanted more than "
            f"{history}. Lower --history, or name other data."
        )
    place = np.arange(len(users)) - (np.cumsum(sizes) - sizes)[users]
    ends = np.flatnonzero(place >= history)
    times = table["timestamp"].to_numpy()
    ends = ends[np.lexsort((order[ends], times[ends]))]
    valid, test = borders(times[ends])
    parts = zip(SPLITS, np.split(ends, [valid, test]), strict=True)
    short = sizes <= history
    counts = {
        "users": len(sizes),
        "users_too_short": int(short.sum()),
        "dropped_rows_of_short_users": int(sizes[short].sum()),
        "rows_only_in_histories": int(history * (~short).sum()),
    }
    before = table.filter(pa.array(times < times[ends[valid]]))
    return Windows({split: _examples(table, rows, history, split) for split, rows in parts}, before["title"], counts)


def ready(windows: pl.DataFrame, history: int) -> Windows:
    """Take windows that the data has split itself (``Raw.windows``), histories cut to the last ``history``.

    The order and the splits are the data's own: what it leaks stays leaked, and test rows that are also training rows
    are counted. Popularity counts the titles of the training rows, histories and targets.

    Raises:
        ValueError: a split has no rows.
    """
    windows = windows.with_columns(pl.col("history").list.tail(history))
    splits = {}
    for split in SPLITS:
        part = windows.filter(pl.col("split") == split)
        if part.is_empty():
            raise ValueError(f"The {split} split has no rows, wanted at least one. Name other data.")
        table = part.select("split", "user", "timestamp", "history", "target").to_arrow()
        table = table.append_column("example_id", _ids(split, part["timestamp"].to_numpy()))
        table = table.append_column("history_ratings", pa.nulls(len(part), pa.list_(pa.float32())))
        table = table.append_column("target_rating", pa.nulls(len(part), pa.float32()))
        splits[split] = schema.check(table, schema.EXAMPLES, f"{split} rows")
    train = windows.filter(pl.col("split") == "train")
    rows = train.select("history", "target")
    again = windows.filter(pl.col("split") == "test").join(rows.unique(), on=["history", "target"], how="semi")
    titles = pl.concat([train["history"].explode(), train["target"]]).to_arrow().cast(pa.string())
    counts = {"users": windows["user"].n_unique(), "test_rows_also_in_train": len(again)}
    return Windows(splits, pa.chunked_array([titles]), counts)
