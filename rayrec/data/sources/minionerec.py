"""MiniOneRec's rows: train/, valid/ and test/NAME.csv (user_id, history_item_id, item_id), info/NAME.txt.

A history is a Python list of ids. The lines of info are the semantic id, the title and the id, with tabs between.
"""

import ast
from pathlib import Path

from rayrec.data.sources import files
from rayrec.data.sources.columns import read_csv
from rayrec.data.sources.reading import Raw, Rejects, item_frame, read_lines, window_frame


def _history(text: str) -> list[str] | None:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(item) for item in found] if isinstance(found, list) and found else None


def read(folder: Path) -> Raw:
    """Read ready windows; the time of a row is its row in its file."""
    rejects, rows, windows = Rejects(), [], []
    path = files.one(folder, "info/*.txt")
    for row, line in read_lines(path):
        cells = line.split("\t")
        if len(cells) > 2:  # a title may hold tabs
            rows.append((row, cells[-1], "\t".join(cells[1:-1]), []))
        else:
            rejects.add(path.name, row, "wanted semantic id, title and id", line)
    known = item_frame(rows, path.name, rejects)
    titles = dict(known.select("item", "title").iter_rows())
    for split in ("train", "valid", "test"):
        file = files.one(folder, f"{split}/*.csv")
        names = {"user_id": "user", "history_item_id": "history", "item_id": "item"}
        for row, user, history, item in read_csv(file, rejects, names).iter_rows():
            ids = _history(history)
            if ids is None or any(one not in titles for one in (*ids, item)):
                reason = "wanted a list of item ids as the history" if ids is None else "unknown item id"
                rejects.add(f"{split}/{file.name}", row, reason, f"{history}, {item}")
            else:
                windows.append((split, user, row, [titles[one] for one in ids], titles[item]))
    return Raw(known, path.name, rejects, windows=window_frame(windows))
