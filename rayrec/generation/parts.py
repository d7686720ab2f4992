"""Kept parts of an unfinished generation phase: when it is resumed, only the missing parts are asked for.

Every ``--checkpoint-seconds``, or once they are many, the new parts go into an entry ``PHASE/checkpoint/KEY-NUMBER`` of
the cache, in the storage too. A part has the same bits whichever generator makes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data import schema
from rayrec.data.mapped import SLICE, mapped
from rayrec.runs import cache
from rayrec.runs.manifest import CHECKPOINT
from rayrec.runs.storage import Storage

#: Rows that are kept at once, since they lie in memory until then.
_MOST = 4 * SLICE
_FILE, _NUMBER = "outputs.parquet", pa.field("part", pa.int32(), nullable=False)
#: Outputs of a part, and the part's number.
_KEPT = schema.PREDICTIONS.append(_NUMBER)


class Parts(Mapping[int, pa.Table]):
    """Outputs (schema.PREDICTIONS) by the number of their part, read from tables of whole parts."""

    def __init__(self, tables: Iterable[pa.Table]):
        self._places: dict[int, tuple[int, int]] = {}
        self._rows = mapped(map(self._placed, tables), _KEPT)

    def _placed(self, table: pa.Table) -> pa.Table:
        """Record the place of each new part and drop the rows of known ones."""
        number = table[_NUMBER.name].to_numpy()
        new = ~np.isin(number, list(self._places))
        table, number = table.filter(pa.array(new)), number[new]
        starts = np.flatnonzero(np.diff(number, prepend=-1))  # the rows of a part are contiguous
        before = sum(length for _, length in self._places.values())
        for start, length in zip(starts.tolist(), np.diff(starts, append=len(number)).tolist(), strict=True):
            self._places[int(number[start])] = (before + start, length)
        return table

    def __getitem__(self, number: int) -> pa.Table:
        return self._rows.slice(*self._places[number]).drop_columns(_NUMBER.name)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class KeptParts:
    """The kept parts of one request; ``key`` is the hash of all that decides their bytes."""

    def __init__(self, phase: Path, key: str, storage: Storage, every: float):
        self.folder, self.key, self.storage, self.every = phase / CHECKPOINT, key, storage, every
        self._lock, self._since = threading.Lock(), time.monotonic()
        self._new: list[pa.Table] = []
        self._rows = 0

    def load(self) -> Parts:
        """Return the parts that an earlier attempt has kept."""
        folders = cache.entries(self.folder, self.key, self.storage)
        return Parts(schema.check(pq.read_table(folder / _FILE), _KEPT, str(folder)) for folder in folders)

    def add(self, number: int, outputs: pa.Table) -> None:
        """Add an answered part (schema.PREDICTIONS), and write all new ones when it is time."""
        if not self.every:
            return
        column = pa.array([number] * len(outputs), _NUMBER.type)
        with self._lock:
            self._new.append(outputs.append_column(_NUMBER, column))
            self._rows += len(outputs)
            if time.monotonic() - self._since < self.every and self._rows < _MOST:
                return
            self._since, new, self._new, self._rows = time.monotonic(), self._new, [], 0
        entry = self.folder / f"{self.key[:8]}-{number}"  # a part is answered once in an attempt
        cache.write_entry(
            entry, self.key, lambda folder: pq.write_table(pa.concat_tables(new), folder / _FILE), self.storage
        )
