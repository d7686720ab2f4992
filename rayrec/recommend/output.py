"""The file of jobs/recommend.py: its columns, and how finished parts become one file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: Columns with an element for each title of a list.
LIST = {"item": pa.int32(), "title": pa.string(), "logprob": pa.float32(), "inclusion": pa.float64()}
#: One row per user, in the order of the histories, in types that Parquet gives back. ``logprob`` is null where
#: ``fallback`` gives popular titles; ``inclusion`` and ``threshold`` (lists.Entry) are null unless the list was drawn.
RECOMMENDATIONS = pa.schema(
    [
        pa.field("user", pa.string(), nullable=False),
        *(pa.field(name, pa.list_(pa.field("element", kind)), nullable=False) for name, kind in LIST.items()),
        pa.field("threshold", pa.float64()),
        pa.field("fallback", pa.bool_(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("catalogue", pa.string(), nullable=False),
        pa.field("created", pa.timestamp("ms", "UTC"), nullable=False),
    ]
)


def join(folder: Path, parts: int, out: Path, drawn: bool) -> dict[str, Any]:
    """Write all parts, in order, to ``out``; returns the summary. ``drawn``: JSON lines have the draw."""
    counts, summary = np.zeros(0, np.int64), {"users": 0, "fallbacks": 0, "errors": 0}
    partial = out.with_name(out.name + ".partial")
    write, close = _writer(partial, out.suffix, drawn)
    for part in range(parts):
        table = pq.read_table(folder / f"{part:09d}.parquet")
        write(table)
        items = table["item"].combine_chunks().flatten().to_numpy()
        counts = np.pad(counts, (0, max(0, int(items.max(initial=-1)) + 1 - len(counts))))
        counts += np.bincount(items, minlength=len(counts))
        summary["users"] += len(table)
        summary["fallbacks"] += int(np.sum(table["fallback"].to_numpy()))
        summary["errors"] += len(table) - table["error"].null_count
    close()
    os.replace(partial, out)
    total = max(1, int(counts.sum()))
    shown = int((counts > 0).sum())
    return summary | {
        "titles_shown": shown,
        "DivRatio": shown / total,
        "ORRatio": float(np.sort(counts)[-3:].sum() / total),
    }


def _writer(path: Path, ending: str, drawn: bool) -> tuple[Callable[[pa.Table], None], Callable[[], None]]:
    if ending == ".parquet":
        parquet = pq.ParquetWriter(path, RECOMMENDATIONS)
        return parquet.write_table, parquet.close
    text = path.open("w", encoding="utf-8")

    def write(table: pa.Table) -> None:
        for row in table.to_pylist():
            output = {"recommendedItems": row["title"], "scores": row["logprob"]}
            if drawn:
                output |= {"inclusion": row["inclusion"], "threshold": row["threshold"]}
            about = {"policy": row["policy"], "catalogue": row["catalogue"], "fallback": row["fallback"]}
            line = {"input": {"userId": row["user"]}, "output": output | about, "error": row["error"]}
            text.write(json.dumps(line, ensure_ascii=False) + "\n")

    return write, text.close
