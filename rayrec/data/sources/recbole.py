"""RecBole atomic files: NAME.inter and NAME.item, tab-separated, with headers ``name:type``."""

from pathlib import Path

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.columns import TABS, header, read_csv
from rayrec.data.sources.reading import Raw, Rejects, interactions, items

TITLES = ("movie_title", "title", "item_name", "name")
GENRES = ("class", "genre", "genres", "categories")


def _columns(path: Path) -> dict[str, str]:
    """By name, the columns of a file as its header has them, ``name:type``."""
    return {name.partition(":")[0]: name for name in header(path, TABS)}


def read(folder: Path) -> Raw:
    """Read interactions with times in seconds; a title is ``Title (year)`` where ``release_year`` is a year."""
    rejects, path = Rejects(), files.one(folder, "*.item")
    found = _columns(path)
    title = next((name for name in TITLES if name in found), TITLES[0])
    genre = next((name for name in GENRES if name in found), GENRES[0])
    names = {"item_id": "item", title: "title", genre: "genres", "release_year": "year"}
    names = {found.get(name, name): wanted for name, wanted in names.items()}
    films = read_csv(path, rejects, names, ("genres", "year"), TABS)
    if "year" in films.columns:
        dated = pl.col("year").str.contains(r"^\d{4}$") & ~pl.col("title").str.contains(r"\(\d{4}\)$")
        dated &= pl.col("title") != ""
        title_year = pl.when(dated).then(pl.format("{} ({})", "title", "year")).otherwise("title")
        films = films.with_columns(title_year.alias("title"))
    known, item_file = items(films, path.name, rejects, spaces=True), path.name
    path = files.one(folder, "*.inter")
    found = _columns(path)
    names = {"user_id": "user", "item_id": "item", "rating": "rating", "timestamp": "timestamp"}
    names = {found.get(name, name): wanted for name, wanted in names.items()}
    plays = read_csv(path, rejects, names, ("rating",), TABS)
    return Raw(known, item_file, rejects, interactions=interactions(plays, known, path.name, rejects))
