"""RecBole atomic files: NAME.inter and NAME.item, tab-separated, with headers ``name:type``."""

from pathlib import Path

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.reading import Raw, Rejects, interactions, items, read_csv, rename

TITLES = ("movie_title", "title", "item_name", "name")
GENRES = ("class", "genre", "genres", "categories")


def _read(folder: Path, ending: str, rejects: Rejects) -> tuple[pl.DataFrame, Path]:
    path = files.one(folder, f"*.{ending}")
    frame = read_csv(path, rejects, separator="\t", quoted=False)
    return frame.rename(lambda name: name.partition(":")[0]), path


def read(folder: Path) -> Raw:
    """Read interactions with times in seconds; a title is ``Title (year)`` where ``release_year`` is a year."""
    rejects = Rejects()
    frame, path = _read(folder, "item", rejects)
    title = next((name for name in TITLES if name in frame.columns), TITLES[0])
    genre = next((name for name in GENRES if name in frame.columns), GENRES[0])
    names = {"item_id": "item", title: "title", genre: "genres", "release_year": "year"}
    films = rename(frame, names, path, optional=("genres", "year"))
    if "year" in films.columns:
        dated = pl.col("year").str.contains(r"^\d{4}$") & ~pl.col("title").str.contains(r"\(\d{4}\)$")
        dated &= pl.col("title") != ""
        title_year = pl.when(dated).then(pl.format("{} ({})", "title", "year")).otherwise("title")
        films = films.with_columns(title_year.alias("title"))
    known, item_file = items(films, path.name, rejects, spaces=True), path.name
    frame, path = _read(folder, "inter", rejects)
    names = {"user_id": "user", "item_id": "item", "rating": "rating", "timestamp": "timestamp"}
    plays = rename(frame, names, path, optional=("rating",))
    return Raw(known, item_file, rejects, interactions=interactions(plays, known, path.name, rejects))
