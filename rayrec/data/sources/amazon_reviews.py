"""Amazon reviews as published in 2014, 2018 and 2023: meta_NAME, and reviews or ratings of the same category.

Reviews are objects in lines: reviewerID, asin, overall, unixReviewTime (2014, 2018), or user_id, parent_asin, rating,
timestamp (2023). Ratings are CSV: without a header user, item, rating, seconds (2014) or item, user, rating, seconds
(2018); with one user_id, parent_asin, rating, timestamp (2023).
"""

import csv
import io
from pathlib import Path
from typing import Any

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.columns import Form, read_csv
from rayrec.data.sources.objects import read_jsonl, read_table
from rayrec.data.sources.reading import Raw, Rejects, interactions, item_frame

_OLD = {"reviewerID": "user", "asin": "item", "overall": "rating", "unixReviewTime": "timestamp"}
_NEW = {"user_id": "user", "parent_asin": "item", "rating": "rating", "timestamp": "timestamp"}


def _first(path: Path) -> str:
    with io.TextIOWrapper(files.opener(path)(), encoding="utf-8", errors="replace") as file:
        return file.readline()


def _plays(path: Path, rejects: Rejects) -> pl.DataFrame:
    line = _first(path)
    if ".json" in path.name:
        return read_table(path, rejects, _NEW if "parent_asin" in line else _OLD, optional=("rating",))
    cells = next(csv.reader([line]), [])
    if "parent_asin" in cells:
        return read_csv(path, rejects, _NEW)
    names = ("user", "item", "rating", "timestamp")
    return read_csv(path, rejects, dict(zip(names, names, strict=True)), form=Form(names=names))


def _categories(value: dict[str, Any]) -> list[str]:
    """Those below the first, which all items of a file share."""
    paths = value.get("categories") or value.get("category") or []
    paths = paths if paths and isinstance(paths[0], list) else [paths]
    return list(dict.fromkeys(str(name) for path in paths for name in path[1:]))


def read(folder: Path) -> Raw:
    """Read reviews or ratings, and the titles of the items that they name; others are counted."""
    rejects = Rejects()
    meta = files.one(folder, "meta_*.json*")
    found = [path for kind in ("json", "jsonl", "csv") for path in files.find(folder, f"*.{kind}")]
    found = [path for path in found if not path.name.startswith("meta_")]
    if len(found) != 1:
        names = [path.name for path in found]
        raise ValueError(
            f"{folder}: found {names} beside {meta.name}, wanted one file of reviews or ratings. Leave one there."
        )
    plays, rows, ids, counts = _plays(found[0], rejects), [], set(), {"items_without_reviews": 0, "items_again": 0}
    named = [set(plays[name].unique()) for name in ("user", "item")]
    for row, value, line in read_jsonl(meta, rejects):
        item = str(value.get("parent_asin") or value.get("asin") or "")
        if item in ids:  # the metadata of 2018 has thousands of items again
            counts["items_again"] += 1
        elif item and not any(item in some for some in named):
            counts["items_without_reviews"] += 1
        elif not isinstance(value.get("title"), str):
            rejects.add(meta.name, row, "empty title", line)
        else:
            rows.append((row, item, value["title"], _categories(value)))
        ids.add(item)
    if len(named[0] & ids) > len(named[1] & ids):  # ratings of 2018 begin with the item
        plays = plays.rename({"user": "item", "item": "user"})
    known = item_frame(rows, meta.name, rejects)
    return Raw(known, meta.name, rejects, interactions(plays, known, found[0].name, rejects), counts=counts)
