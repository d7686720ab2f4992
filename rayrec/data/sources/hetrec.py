"""LastFM of HetRec 2011: user_artists.dat (userID, artistID, weight), artists.dat (id, name), optional tags.

Tags are user_taggedartists.dat (userID, artistID, tagID …) and tags.dat (tagID, tagValue). All are tab-separated.
"""

from pathlib import Path

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.columns import TABS, read_csv
from rayrec.data.sources.reading import Raw, Rejects, interactions, items

#: An artist's most frequent tags are its genres.
TAGS = 3


def _read(folder: Path, name: str, names: dict[str, str], rejects: Rejects) -> pl.DataFrame:
    return read_csv(files.one(folder, name), rejects, names, form=TABS._replace(latin=True))


def _genres(folder: Path, rejects: Rejects) -> pl.DataFrame:
    tags = _read(folder, "tags.dat", {"tagID": "tag", "tagValue": "genres"}, rejects)
    given = _read(folder, "user_taggedartists.dat", {"artistID": "item", "tagID": "tag"}, rejects)
    counted = given.group_by("item", "tag").len().sort("item", "len", "tag", descending=[False, True, False])
    named = counted.join(tags, on="tag", maintain_order="left")
    return named.group_by("item", maintain_order=True).agg(pl.col("genres").head(TAGS))


def read(folder: Path) -> Raw:
    """Read plays; the data has no times, so an interaction's time is its row. Weights are counts of plays."""
    rejects = Rejects()
    artists = _read(folder, "artists.dat", {"id": "item", "name": "title"}, rejects)
    if files.find(folder, "tags.dat") and files.find(folder, "user_taggedartists.dat"):
        artists = artists.join(_genres(folder, rejects), on="item", how="left", maintain_order="left")
    known = items(artists, "artists.dat", rejects)
    names = {"userID": "user", "artistID": "item", "weight": "rating"}
    plays = _read(folder, "user_artists.dat", names, rejects).with_columns(pl.col("row").alias("timestamp"))
    return Raw(known, "artists.dat", rejects, interactions=interactions(plays, known, "user_artists.dat", rejects))
