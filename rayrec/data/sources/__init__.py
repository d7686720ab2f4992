"""One reader per format, and the rule that recognises a folder by its files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rayrec.data.sources import (
    amazon,
    amazon_reviews,
    files,
    goodreads,
    hetrec,
    lastfm,
    minionerec,
    movielens,
    recbole,
    remote,
    sprec,
    steam,
    steam_reviews,
    tables,
    yelp,
)
from rayrec.data.sources.reading import Raw
from rayrec.data.store import is_url


class Source(NamedTuple):
    """The files (or patterns) that make a folder this source's, its reader, and further files that it may read.

    Where ``named``, the reader takes --columns too.
    """

    files: tuple[str, ...]
    read: Callable[..., Raw]
    named: bool = False
    more: tuple[str, ...] = ()

    def missing(self, folder: Path) -> list[str]:
        """Return the files that ``folder`` lacks."""
        return [pattern for pattern in self.files if not files.find(folder, pattern)]

    def has(self, path: Path) -> bool:
        """Return whether a file is one that this source reads in its folder."""
        return any(path in files.find(path.parent, pattern) for pattern in (*self.files, *self.more))


SOURCES = {
    "sprec": Source(
        ("train.json", "valid.json", "test.json", "id2name.json"),
        sprec.read,
        more=("name2genre.json", "genre_dict.json"),
    ),
    "movielens": Source(("ratings.csv", "movies.csv"), movielens.read),
    "movielens-dat": Source(("ratings.dat", "movies.dat"), movielens.read_dat),
    "movielens-100k": Source(("u.data", "u.item"), movielens.read_100k),
    "recbole": Source(("*.inter", "*.item"), recbole.read),
    "lastfm": Source(("train.jsonl", "valid.jsonl", "test.jsonl", "id2name.txt"), lastfm.read),
    "amazon": Source(("sequential_data.txt", "items.jsonl"), amazon.read),
    "amazon-reviews": Source(("meta_*.json*",), amazon_reviews.read, more=("*.json", "*.jsonl", "*.csv")),
    "goodreads": Source(
        ("goodreads_books*.json*", "goodreads_[ir]*.json*"), goodreads.read, more=("goodreads_book_genres*.json*",)
    ),
    "yelp": Source(("yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"), yelp.read),
    "hetrec": Source(("user_artists.dat", "artists.dat"), hetrec.read, more=("tags.dat", "user_taggedartists.dat")),
    "minionerec": Source(("train/*.csv", "valid/*.csv", "test/*.csv", "info/*.txt"), minionerec.read),
    "steam-reviews": Source(("steam_reviews.json*", "steam_games.json*"), steam_reviews.read),
    "steam-hours": Source(("game_play.dat", "item_info.dat"), steam.read),
    "parquet": Source(("interactions.parquet", "items.parquet"), tables.read_parquet, True),
    "jsonl": Source(("interactions.jsonl", "items.jsonl"), tables.read_jsonl, True),
    "csv": Source(("interactions.csv", "items.csv"), tables.read_csv, True),
}

#: Sources that also read one table of any name.
_LOGS = ("auto", "parquet", "jsonl", "csv")


def _matches(folder: Path) -> list[str]:
    return [name for name, source in SOURCES.items() if not source.missing(folder)]


def _fetched(url: str, source: str) -> Path:
    """This machine's copy of the files in a store that the source, or with `auto` any, reads."""
    read = [known for name, known in SOURCES.items() if source in ("auto", name)]
    return remote.fetch(url, [(known.files, known.more) for known in read])


def _kind(table: Path) -> str:
    kinds = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    return next((kind for ending, kind in kinds.items() if ending in table.name), "csv")


def _alone(path: Path) -> tuple[str, Path] | None:
    """The source and the path of one table: a file, the only one of a folder, or the parts of a folder."""
    own = files.tables(path) if path.is_dir() else [path] * files.is_table(path.name)
    if len(own) == 1 and own[0].parent in (path, path.parent):
        return _kind(own[0]), own[0]
    return ("parquet", path) if own and {*map(_kind, own)} == {"parquet"} else None


def detect(source: str, data: str | None) -> tuple[str, Path | None]:
    """Return the source's name and its folder, or the one table that it reads; None for ``synthetic``.

    ``data`` is a folder or a file, or an address of one in a store (:func:`rayrec.data.sources.remote.fetch`). A file
    of a known format names its folder; a table of no format, and the only one of a folder, is a log with titles.

    ValueError: the path is missing or not wanted, lacks the source's files, or is of no known or of several formats.
    """
    if data is None:
        if source not in ("auto", "synthetic"):
            raise ValueError(f"--source {source} reads files, but --data is missing. Add --data PATH.")
        return "synthetic", None
    if source == "synthetic":
        raise ValueError(f"--source synthetic reads nothing, but --data is {data}. Remove one of them.")
    path = _fetched(data, source) if is_url(data) else Path(data).expanduser()
    if not path.exists():
        raise ValueError(f"--data {data}: there is no such file or folder. Name one that exists.")
    folder = path if path.is_dir() else path.parent
    missing = [] if source == "auto" else SOURCES[source].missing(folder)
    found = _matches(folder) if source == "auto" else [] if missing else [source]
    if path.is_file() and files.is_table(path.name) and source in _LOGS:
        found = [name for name in found if SOURCES[name].has(path)]
    if len(found) == 1:
        return found[0], folder
    if found:
        raise ValueError(f"--data {data}: the files fit the formats {found}. Name one by --source.")
    if (alone := _alone(path)) and source in ("auto", alone[0]):
        return alone
    if source != "auto":
        raise ValueError(f"--data {data}: --source {source} wants {missing}, which are not there. Try --source auto.")
    looked = "; ".join(f"{name}: {', '.join(known.files)}" for name, known in SOURCES.items())
    folders = [child for child in folder.iterdir() if child.is_dir() and os.access(child, os.R_OK | os.X_OK)]
    inner = sorted(child.name for child in folders if _matches(child) or _alone(child))
    hint = f" Its folders {inner} can be read: name one." if inner else ""
    if path.is_file() and (remedy := files.unpacking(path, path.name)):
        hint = f" It is an archive. Unpack it: `{remedy}`, and name that folder."
    elif own := files.tables(folder):
        ending = _kind(own[0])
        hint += f" Found {[table.name for table in own[:3]]}. Name the one with user, title and timestamp; or call the "
        hint += f"log interactions.{ending} and the titles, one row an item, items.{ending} (docs/data.md)"
        hint += "." if {*map(_kind, own)} == {ending} else ", both written in one format."
    elif not inner:
        hint = f" Found {sorted(child.name for child in folder.iterdir())[:5]}."
    raise ValueError(f"--data {data}: the format is not known.{hint} Looked for {looked}.")
