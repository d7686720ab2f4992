"""Answered parts of a generation phase that is not finished: cut short, it goes on with the parts that are left.

Every ``--checkpoint-seconds`` what was answered since the last time is put into a finished folder
``PHASE/checkpoint/NUMBER``, in the storage too. A part has the same bits whoever makes it, so nothing else is kept.
"""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data import schema
from rayrec.folders import CHECKPOINT, damage, read_json, seal
from rayrec.storage import Storage

_FILE, _NUMBER = "outputs.parquet", pa.field("part", pa.int32(), nullable=False)


class KeptParts:
    """Outputs (schema.PREDICTIONS) of one request's parts, by number; ``key`` says what decides their bytes."""

    def __init__(self, phase: Path, key: str, storage: Storage, every: float):
        self.folder, self.key, self.storage, self.every = phase / CHECKPOINT, key, storage, every
        self._lock, self._since = threading.Lock(), time.monotonic()
        self._new: list[pa.Table] = []

    def load(self) -> dict[int, pa.Table]:
        """Return the parts that an earlier attempt has kept; what is damaged or of another key is left out."""
        found: dict[int, pa.Table] = {}
        for folder in self.storage.finished_in(self.folder):
            self.storage.fetch_sound(folder)
            if damage(folder) or read_json(folder / "metrics.json")["key"] != self.key:
                continue
            table = pq.read_table(folder / _FILE)
            outputs = schema.check(table.drop_columns(_NUMBER.name), schema.PREDICTIONS, str(folder))
            numbers = table[_NUMBER.name].to_numpy()
            found |= {number: outputs.filter(pa.array(numbers == number)) for number in map(int, set(numbers))}
        return found

    def add(self, number: int, outputs: pa.Table) -> None:
        """Take an answered part; every now and then, keep what was taken."""
        if not self.every:
            return
        column = pa.array([number] * len(outputs), _NUMBER.type)
        with self._lock:
            self._new.append(outputs.append_column(_NUMBER, column))
            if time.monotonic() - self._since < self.every:
                return
            self._since, new, self._new = time.monotonic(), self._new, []
        made = self.folder / f"{self.key[:8]}-{number}"  # a part is taken once in an attempt, and left out in the next
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        pq.write_table(pa.concat_tables(new), made / _FILE)
        seal(made, CHECKPOINT, {"key": self.key})
        self.storage.keep(made)
