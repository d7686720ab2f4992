"""Anyone's logs in two tables, as Parquet or CSV.

``interactions``: user, item, timestamp (seconds since the epoch, or Parquet dates), optional rating (0 to 5 stars).
``items``: item, title, optional genres (Parquet: a list of text; both: text ``a|b``).
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from rayrec.data.sources import reading
from rayrec.data.sources.reading import Raw, Rejects


def _read(folder: Path, ending: str, read: Callable[[Path], pl.DataFrame], rejects: Rejects) -> Raw:
    path = folder / f"items.{ending}"
    names = {name: name for name in ("item", "title", "genres")}
    frame = reading.rename(read(path), names, path, optional=("genres",))
    if "genres" not in frame.columns:
        frame = frame.with_columns(pl.lit([], pl.List(pl.String)).alias("genres"))
    elif frame.schema["genres"] == pl.String:
        frame = frame.with_columns(pl.col("genres").str.split("|"))
    known = reading.items(frame, path.name, rejects)
    path = folder / f"interactions.{ending}"
    names = {name: name for name in ("user", "item", "rating", "timestamp")}
    plays = reading.rename(read(path), names, path, optional=("rating",))
    return Raw(known, f"items.{ending}", rejects, interactions=reading.interactions(plays, known, path.name, rejects))


def read_parquet(folder: Path) -> Raw:
    """Read interactions.parquet and items.parquet."""
    return _read(folder, "parquet", reading.read_parquet, Rejects())


def read_csv(folder: Path) -> Raw:
    """Read interactions.csv and items.csv: a header, commas, double quotes around fields that need them."""
    rejects = Rejects()
    return _read(folder, "csv", lambda path: reading.read_csv(path, rejects), rejects)
