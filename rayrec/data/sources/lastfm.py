"""LastFM as S-DPO splits it: train/valid/test.jsonl ({history, target}: item ids) and id2name.txt (id::name)."""

from pathlib import Path
from typing import Any

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.objects import read_jsonl
from rayrec.data.sources.reading import Raw, Rejects, item_frame, read_lines, window_frame

WINDOW = 10


def _items(path: Path, rejects: Rejects) -> pl.DataFrame:
    rows = []
    for row, line in read_lines(path):
        item, colons, title = line.partition("::")
        if colons:
            rows.append((row, item, title, []))
        else:
            rejects.add(path.name, row, "wanted id::name", line)
    return item_frame(rows, path.name, rejects)


def _titles(value: dict[str, Any], titles: dict[str, str]) -> list[str] | str:
    """Return the titles of history and target, or the fault of the row."""
    history, target = value.get("history"), value.get("target")
    if not isinstance(history, list) or not history or target is None:
        return "wanted a history of at least one item, and a target"
    try:
        return [titles[str(item)] for item in (*history, target)]
    except KeyError:
        return "unknown item id"


def read(folder: Path) -> Raw:
    """Read ready windows; the time of a row is its row in its file.

    Rows name no user: a row that does not continue the row before begins a new one, named by split and number.
    """
    rejects = Rejects()
    known = _items(files.one(folder, "id2name.txt"), rejects)
    titles = dict(known.select("item", "title").iter_rows())
    windows = []
    for split in ("train", "valid", "test"):
        path, user, expected = files.one(folder, f"{split}.jsonl"), -1, None
        for row, value, line in read_jsonl(path, rejects):
            names = _titles(value, titles)
            if isinstance(names, str):
                rejects.add(path.name, row, names, line)
                continue
            user += names[:-1] != expected
            expected = names[-WINDOW:]
            windows.append((split, f"{split}-{user:04d}", row, names[:-1], names[-1]))
    return Raw(known, "id2name.txt", rejects, windows=window_frame(windows))
