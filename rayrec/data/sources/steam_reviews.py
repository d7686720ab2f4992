"""Steam by UCSD: steam_reviews (username, product_id, date, hours) and steam_games (id, title or app_name, genres).

Both are Python literals in lines.
"""

from pathlib import Path

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.objects import read_jsonl, read_table
from rayrec.data.sources.reading import Raw, Rejects, interactions, item_frame
from rayrec.data.sources.steam import stars

_NAMES = {"username": "user", "product_id": "item", "date": "timestamp", "hours": "hours"}


def read(folder: Path) -> Raw:
    """Read reviews by day; hours become stars as those of `steam-hours` do. Games without a review are counted."""
    rejects, counts = Rejects(), {"items_without_reviews": 0}
    path, games = files.one(folder, "steam_reviews.json*"), files.one(folder, "steam_games.json*")
    plays = read_table(path, rejects, _NAMES, optional=("hours",))
    plays = plays.with_columns(pl.col("hours").cast(pl.Float64, strict=False)).with_columns(stars().alias("rating"))
    named, rows = set(plays["item"].unique()), []
    for row, value, _ in read_jsonl(games, rejects):
        if (item := str(value.get("id", ""))) in named:
            title = value.get("title") or value.get("app_name") or ""
            rows.append((row, item, str(title), [str(name) for name in value.get("genres") or ()]))
        else:
            counts["items_without_reviews"] += 1
    known = item_frame(rows, games.name, rejects)
    return Raw(known, games.name, rejects, interactions(plays, known, path.name, rejects), counts=counts)
