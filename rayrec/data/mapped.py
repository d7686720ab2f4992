"""Tables and arrays of row numbers in memory-mapped files, so that memory stays flat whatever the number of rows.

The files are in ``TMPDIR`` and have no name, so they end with the process. A full disk raises OSError.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import polars as pl
import pyarrow as pa

#: Rows of a slice. A row takes kilobytes as Python objects, and some hundred bytes in Arrow.
SLICE = 1 << 13
#: Rows of a chunk, the unit of a file and of :func:`take`. Each chunk takes some kilobytes of memory in each table.
CHUNK = 2 * SLICE
#: Numbers that are computed at once.
_PART = 1 << 17


def mapped(slices: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Write tables of one schema to a file and return them as one table, in chunks of about CHUNK rows."""
    with tempfile.TemporaryFile(prefix="rayrec-") as file:
        path = f"/proc/self/fd/{file.fileno()}"  # Arrow opens files by name
        with pa.OSFile(path, "wb") as sink:
            writer = pa.ipc.new_file(sink, schema)
            for some in _even(slices):
                with _written():
                    writer.write_table(some.combine_chunks(), max_chunksize=CHUNK)
            with _written():
                writer.close()
        return pa.ipc.open_file(pa.memory_map(path)).read_all()


def array(length: int, dtype: type = np.int32) -> np.ndarray:
    """Return zeros, (length,), that the operating system may move from memory to disk."""
    if not length:
        return np.zeros(0, dtype)
    size = length * np.dtype(dtype).itemsize
    with tempfile.TemporaryFile(prefix="rayrec-") as file:
        with _written():
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and SIGBUS later
        return np.frombuffer(mmap.mmap(file.fileno(), size), dtype)


def filled(length: int, parts: Iterable[np.ndarray], dtype: type = np.int32) -> np.ndarray:
    """Return an :func:`array` of ``parts``, one after the other."""
    whole, start = array(length, dtype), 0
    for part in parts:
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def computed(length: int, values: Callable[[slice], np.ndarray], dtype: type = np.int32) -> np.ndarray:
    """Return an :func:`array` whose numbers are the ``values`` of their places, a hundred thousand at once."""
    return filled(length, map(values, places(length)), dtype)


def places(length: int) -> Iterator[slice]:
    """Yield 0 to ``length`` in parts of a hundred thousand numbers."""
    return (slice(start, min(start + _PART, length)) for start in range(0, length, _PART))


def ascending(length: int) -> np.ndarray:
    """Return 0 to ``length`` − 1, (length,) int32, as an :func:`array`."""
    return computed(length, lambda part: np.arange(part.start, part.stop))


def numbers(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    """Return the values of a column as an :func:`array`, null as NaN."""
    return filled(len(column), (chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks), dtype)


@contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{os.strerror(error.errno or 0)}: {tempfile.gettempdir()}, where rows are while they are in use"
        raise OSError(error.errno, f"{where}. Point TMPDIR to a larger disk") from error


def slices(table: pa.Table, size: int = SLICE) -> Iterator[pa.Table]:
    """Yield the rows in order, ``size`` at a time."""
    return (table.slice(start, size) for start in range(0, len(table), size))


def each(table: pa.Table, change: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Apply ``change`` to every slice of a table, and to an empty one for the schema."""
    return mapped(map(change, slices(table)), change(table.slice(0, 0)).schema)


def coded(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return the place of each text among the distinct ones, (N,) int32, and these in the order of the column."""
    names, known, count = pl.Series(dtype=pl.Categorical), [pl.Series(dtype=pl.String)], 0
    place = np.zeros(0, np.int32)

    def codes() -> Iterator[np.ndarray]:
        nonlocal names, place, count
        for chunk in column.chunks:
            texts = pl.Series(pl.from_arrow(chunk), dtype=pl.String)
            names = texts.cast(pl.Categorical)  # while one column of them lives, a text has one number in all
            code = names.to_physical().to_numpy()
            room = max(int(code.max(initial=0)) + 1 - len(place), 0)
            place = np.concatenate([place, np.full(room and max(room, len(place)), -1, np.int32)])
            found, first = np.unique(code, return_index=True)
            new = np.sort(first[place[found] < 0])
            place[code[new]] = count + np.arange(len(new))
            count += len(new)
            known.append(texts[new])
            yield place[code]

    return filled(len(column), codes()), pl.concat(known).to_arrow().cast(pa.string())


def take(table: pa.Table, numbers: np.ndarray) -> pa.Table:
    """Return the rows ``numbers`` in that order. (pyarrow's ``Table.take`` copies the whole table first.)"""
    if len(numbers) and (np.diff(numbers) == 1).all():
        return table.slice(int(numbers[0]), len(numbers))
    batches = table.to_batches()
    ends = np.cumsum([len(batch) for batch in batches])
    if 0 < len(numbers) <= CHUNK:
        return _take(batches, ends, numbers)
    parts = (numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK))
    return mapped((_take(batches, ends, part) for part in parts), table.schema)


def _take(batches: list[pa.RecordBatch], ends: np.ndarray, numbers: np.ndarray) -> pa.Table:
    """Take at most CHUNK rows, chunk by chunk, and put them in order."""
    chunk = np.searchsorted(ends, numbers, side="right")
    order = np.argsort(chunk, kind="stable")
    found, first = np.unique(chunk[order], return_index=True)
    parts = pa.Table.from_batches(
        batches[one].take(pa.array(numbers[own] - (ends[one] - len(batches[one]))))
        for one, own in zip(found, np.split(order, first[1:]), strict=True)
    )
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return parts.take(pa.array(back)).combine_chunks()


def _even(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Merge tables into tables of CHUNK rows or a little more."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= CHUNK:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
