"""The token table of a training phase: Ray Data writes it once, and each worker reads its own slots of every step.

A file of the table (schema.TOKENS, Arrow IPC, named after its first step) holds some steps, and of these one record
batch for each slot of the global batch. So any number of workers reads its own rows and no others.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, LocalFileSystem

from rayrec.cluster.watchdog import Watchdog
from rayrec.data import schema
from rayrec.errors import Stopped
from rayrec.prompts import Template
from rayrec.runs.storage import Storage
from rayrec.training.board import Phase

#: Rows of a file of the table, about: tokenised by one task, and held by each worker one file at a time.
_PART = 1 << 13


def write_rows(rows: pa.Table, path: Path, batch: int) -> None:
    """Write the rows of a phase (schema.PREFERENCES), in row groups of whole steps."""
    pq.write_table(rows, path, row_group_size=max(1, _PART // batch) * batch)


def write_tokens(phase: Phase, template: Template, storage: Storage, patience: float) -> None:
    """Write the token table of a phase with Ray Data, one task for each row group of ``phase.rows``.

    A task takes half a CPU. The table of an earlier attempt is replaced.

    Raises:
        OSError: the storage failed a task.
        Stopped: no task has finished for ``patience`` seconds.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    remove_tokens(phase, storage)
    parts = [{"part": i} for i in range(pq.read_metadata(phase.rows).num_row_groups)]
    write: Any = _WriteTokens(phase, template, storage)
    written = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(write, num_cpus=0.5)
    results: SimpleQueue[dict | BaseException] = SimpleQueue()

    def follow() -> None:
        try:
            for one in written.iter_rows():
                results.put(one)
        except BaseException as error:
            results.put(error)

    Thread(target=follow, name="tokens", daemon=True).start()
    watchdog, left = Watchdog(f"{phase.name}: no tokens from Ray Data", patience), len(parts)
    while left:
        try:
            found = results.get(timeout=0.5)
        except Empty:
            if watchdog.check():
                raise Stopped(f"{phase.name}: no tokens from Ray Data for {watchdog.silent:.0f} s") from None
            continue
        if isinstance(found, BaseException):
            raise found
        if found["error"]:
            raise OSError(found["errno"], found["error"])
        watchdog.beat()
        left -= 1


def remove_tokens(phase: Phase, storage: Storage) -> None:
    """Remove the token table of a phase, if there is one."""
    storage.remove(_folder(phase))
    shutil.rmtree(_folder(phase), ignore_errors=True)


@dataclass(frozen=True)
class _WriteTokens:
    """Ray Data's task: tokenise row groups, and write each to a file of its own."""

    phase: Phase
    template: Template
    storage: Storage

    def __call__(self, parts: dict[str, Any]) -> dict[str, list]:
        found: dict[str, list] = {"errno": [], "error": []}
        for part in parts["part"].tolist():
            errno, error = 0, ""
            try:
                self._write(part)
            except OSError as failure:  # as an exception it would come back as Ray Data's
                errno, error = failure.errno or 0, failure.strerror or str(failure)
            found["errno"].append(errno)
            found["error"].append(error)
        return found

    def _write(self, part: int) -> None:
        filesystem, path = _open(self.storage, self.phase.rows)
        with filesystem.open_input_file(path) as file:
            rows = pq.ParquetFile(file).read_row_group(part)
        batch = self.phase.batch
        by_slot = np.arange(len(rows)).reshape(-1, batch).T.ravel()
        tokens = Tokenise(self.phase.kind, self.template)(rows).take(by_slot).combine_chunks()
        filesystem, folder = _open(self.storage, _folder(self.phase))
        filesystem.create_dir(folder, recursive=True)
        target = f"{folder}/{rows['step'][0].as_py():09d}.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            filesystem.open_output_stream(f"{target}.partial") as file,
            pa.ipc.new_file(file, tokens.schema, options=options) as writer,
        ):
            writer.write_table(tokens, max_chunksize=len(rows) // batch)
        filesystem.move(f"{target}.partial", target)


def read_shard(phase: Phase, rank: int, world: int, storage: Storage, begun: int) -> Iterator[pa.Table]:
    """One worker's rows of every step from ``begun`` on, a table a step: its slots of the global batch."""
    filesystem, folder = _open(storage, _folder(phase))
    names = sorted(info.path for info in filesystem.get_file_info(FileSelector(folder)) if info.extension == "arrow")
    firsts = [int(Path(name).stem) for name in names]
    own, size = range(rank * phase.batch // world, (rank + 1) * phase.batch // world), phase.batch // world
    for name, first, end in zip(names, firsts, [*firsts[1:], phase.steps], strict=True):
        if end <= begun:
            continue
        with filesystem.open_input_file(name) as file:
            reader = pa.ipc.open_file(file)
            slots = pa.Table.from_batches([reader.get_batch(slot) for slot in own])
        by_step = np.arange(len(slots)).reshape(size, -1).T[max(0, begun - first) :].ravel()
        steps = slots.take(by_step).combine_chunks()
        yield from (steps.slice(start, size) for start in range(0, len(steps), size))


def _folder(phase: Phase) -> Path:
    """Return the folder of the token table."""
    return Path(phase.out).with_name("tokens")


def _open(storage: Storage, path: str | Path) -> tuple[Any, str]:
    """Return the filesystem that all nodes share, and the path in it."""
    source = storage.for_ray_data(path)
    return source.get("filesystem", LocalFileSystem()), source["paths"]


@dataclass(frozen=True)
class Tokenise:
    """Turns training rows (schema.PREFERENCES) into token ids (schema.TOKENS); further columns stay as they are."""

    kind: str
    template: Template

    def __call__(self, rows: pa.Table) -> pa.Table:
        rows = rows.combine_chunks()
        further = sorted({*rows.column_names} - {*schema.PREFERENCES.names})
        names = ("example_id", "weight", "step", "slot", "scores", "smoothing", *further)
        columns = {name: rows[name] for name in names}
        if self.kind == "pretrain":
            titles = rows.select(["history", "chosen"]).to_pylist()
            sequences = [self.template.sequence_ids([*row["history"], row["chosen"]]) for row in titles]
            columns["prompt"] = pa.array([prompt for prompt, _ in sequences], _IDS)
            columns["answers"] = pa.array([[answer] for _, answer in sequences], pa.list_(_IDS))
        else:
            columns["prompt"] = pa.array(self.template.prompts(rows), _IDS)
            columns["answers"] = self._answers(*(_array(rows[name]) for name in ("chosen", "rejected", "rejected_ids")))
        columns["neighbour"] = self._ids(_array(rows["neighbour"]))
        tokens = pa.table(columns)
        return schema.check(tokens, schema.extended(schema.TOKENS, tokens, further), "tokens")

    def _answers(self, chosen: pa.Array, rejected: Any, rejected_ids: Any) -> pa.Array:
        """Return the tokens of each chosen answer and, after it, of the rejected ones."""
        rows, lengths = len(chosen), pc.call_function("list_value_length", [rejected]).to_numpy()
        starts = np.concatenate([[0], np.cumsum(lengths + 1)])
        place = np.arange(starts[-1]) + rows - np.repeat(np.arange(rows) + 1, lengths + 1)
        place[starts[:-1]] = np.arange(rows)
        texts = pa.concat_arrays([chosen, rejected.flatten()]).take(pa.array(place))
        if rejected_ids.null_count:
            return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), self._ids(texts))
        written = pa.concat_arrays([pa.nulls(rows, _IDS), rejected_ids.flatten()]).take(pa.array(place))
        return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), self._ids(texts, written))

    def _ids(self, texts: pa.Array, written: Any = None) -> Any:
        """Return the tokens ``written`` by a policy, else those of the text; null for null.

        Each different text is tokenised once.
        """
        if written is None:
            written = pa.nulls(len(texts), _IDS)
        known = written.is_valid().to_numpy(zero_copy_only=False)
        coded = pc.call_function("if_else", [pa.array(known), pa.scalar(None, pa.string()), texts]).dictionary_encode()
        ids = pa.array([self.template.answer_ids(text) for text in coded.dictionary.to_pylist()], _IDS)
        place = pc.call_function(
            "if_else", [pa.array(known), pa.array(len(ids) + np.arange(len(texts)), pa.int32()), coded.indices]
        )
        return pa.concat_arrays([ids, written]).take(place)


_IDS = pa.list_(pa.int32())


def _array(column: pa.ChunkedArray) -> Any:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def padding(row: dict) -> dict:
    """Return a row of weight 0 with one token in each text: with ZeRO all workers run the model equally often."""
    short = {"prompt": row["prompt"][:1], "answers": [answer[:1] for answer in row["answers"]]}
    return row | short | {"weight": 0.0, "neighbour": row["neighbour"] and row["neighbour"][:1]}
