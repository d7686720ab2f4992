"""Amazon purchases: sequential_data.txt (user item item …, oldest first), items.jsonl (item, title, categories)."""

from pathlib import Path

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.objects import read_jsonl
from rayrec.data.sources.reading import Raw, Rejects, interactions, item_frame, read_lines


def _items(path: Path, rejects: Rejects) -> pl.DataFrame:
    rows = []
    for row, value, line in read_jsonl(path, rejects):
        title, path_down = value.get("title"), value.get("categories", [])
        if not isinstance(title, str) or "item" not in value or not isinstance(path_down, list):
            rejects.add(path.name, row, "wanted item, title and a list of categories", line)
            continue
        rows.append((row, str(value["item"]), title, [str(name) for name in path_down[1:]]))
    return item_frame(rows, path.name, rejects)


def read(folder: Path) -> Raw:
    """Read purchases; the data has no times, so an interaction's time is its position in its user's sequence, from 0.

    Categories below the first (which all items share) are the genres.
    """
    rejects = Rejects()
    known = _items(files.one(folder, "items.jsonl"), rejects)
    path = files.one(folder, "sequential_data.txt")
    lines = read_lines(path)
    frame = pl.DataFrame(lines, {"row": pl.Int64, "line": pl.String}, orient="row")
    ids = pl.col("line").str.extract_all(r"\S+")
    frame = rejects.sift(frame, path.name, pl.when(ids.list.len() < 2).then(pl.lit("no items")), ["line"])
    plays = (
        frame.select("row", ids.list.first().alias("user"), ids.list.slice(1).alias("item"))
        .explode("item")
        .with_columns((pl.col("user").cum_count().over("user") - 1).cast(pl.Int64).alias("timestamp"))
    )
    return Raw(known, "items.jsonl", rejects, interactions=interactions(plays, known, path.name, rejects))
