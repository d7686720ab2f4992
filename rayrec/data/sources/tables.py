"""Anyone's logs in two tables, as Parquet or CSV.

``interactions``: user, item, timestamp (seconds since the epoch, or Parquet dates), optional rating (0 to 5 stars).
``items``: item, title, optional genres (Parquet: a list of text; both: text ``a|b``).
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from rayrec.data.sources import files, reading
from rayrec.data.sources.reading import Raw, Rejects


def _read(folder: Path, ending: str, read: Callable[[Path], pl.DataFrame], rejects: Rejects) -> Raw:
    path = files.one(folder, f"items.{ending}")
    names = {name: name for name in ("item", "title", "genres")}
    frame = reading.rename(read(path), names, path, optional=("genres",))
    known, item_file = reading.items(frame, path.name, rejects), path.name
    path = files.one(folder, f"interactions.{ending}")
    names = {name: name for name in ("user", "item", "rating", "timestamp")}
    plays = reading.rename(read(path), names, path, optional=("rating",))
    return Raw(known, item_file, rejects, interactions=reading.interactions(plays, known, path.name, rejects))


def read_parquet(folder: Path) -> Raw:
    """Read interactions.parquet and items.parquet."""
    return _read(folder, "parquet", reading.read_parquet, Rejects())


def read_csv(folder: Path) -> Raw:
    """Read interactions.csv and items.csv: a header, commas, double quotes around fields that need them."""
    rejects = Rejects()
    return _read(folder, "csv", lambda path: reading.read_csv(path, rejects, None), rejects)
