"""Goodreads by UCSD: goodreads_books*, goodreads_interactions* or _reviews*, optional goodreads_book_genres*.

All are objects in lines: book_id and title; user_id, book_id, rating (0: none), date_added; book_id and genres.
"""

from pathlib import Path

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.objects import read_jsonl, read_table
from rayrec.data.sources.reading import Raw, Rejects, interactions, item_frame

_NAMES = {"user_id": "user", "book_id": "item", "rating": "rating", "date_added": "timestamp"}


def read(folder: Path) -> Raw:
    """Read what users put on their shelves, at that time, and the titles of those books; others are counted."""
    rejects, counts = Rejects(), {"items_without_interactions": 0}
    path = files.one(folder, "goodreads_[ir]*.json*")
    plays = read_table(path, rejects, _NAMES, optional=("rating",))
    # Wed Aug 02 11:15:17 -0700 2017
    time = pl.col("timestamp").str.to_datetime("%a %b %d %H:%M:%S %z %Y", strict=False).dt.epoch("s")
    rating = pl.when(pl.col("rating").is_in(["0", "0.0"])).then(None).otherwise("rating")
    plays = plays.with_columns(rating.alias("rating"), time.cast(pl.String).fill_null("none").alias("timestamp"))
    books, named = files.one(folder, "goodreads_books*.json*"), set(plays["item"].unique())
    genres = {}
    for found in files.find(folder, "goodreads_book_genres*.json*"):
        for _, value, _ in read_jsonl(found, rejects):
            if (item := str(value.get("book_id"))) in named and isinstance(value.get("genres"), dict):
                genres[item] = list(value["genres"])
    rows = []
    for row, value, _ in read_jsonl(books, rejects):
        if (item := str(value.get("book_id", ""))) in named:
            rows.append((row, item, str(value.get("title") or ""), genres.get(item, [])))
        else:
            counts["items_without_interactions"] += 1
    known = item_frame(rows, books.name, rejects)
    return Raw(known, books.name, rejects, interactions(plays, known, path.name, rejects), counts=counts)
