"""Steam play hours: game_play.dat (User_ID, Game_ID, Hours) and item_info.dat (Game_ID, Game Name), tab-separated."""

from pathlib import Path

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.columns import TABS, read_csv
from rayrec.data.sources.reading import Raw, Rejects, interactions, items


def stars() -> pl.Expr:
    """Rating 1 to 5 of a play time: min(5, 1 + floor(5 (average rank - 1/2) / n)) within the game's n plays (RecPO).

    The rank is taken over all plays of the game, so the rating of a training row knows how long later players played.
    """
    rank = pl.col("hours").rank("average").over("item")
    found = pl.min_horizontal(pl.lit(5.0), 1 + (5 * (rank - 0.5) / pl.col("hours").count().over("item")).floor())
    return pl.when(pl.col("hours").is_not_null()).then(found)


def read(folder: Path) -> Raw:
    """Read plays; the data has no times, so an interaction's time is its row in the file."""
    rejects = Rejects()
    games, plays = files.one(folder, "item_info.dat"), files.one(folder, "game_play.dat")
    frame = read_csv(games, rejects, {"Game_ID": "item", "Game Name": "title"}, form=TABS)
    known = items(frame, games.name, rejects)
    names = {"User_ID": "user", "Game_ID": "item", "Hours": "hours"}
    frame = read_csv(plays, rejects, names, form=TABS)
    number = pl.col("hours").cast(pl.Float64, strict=False)
    bad = pl.when(~(number.is_finite() & (number >= 0)).fill_null(False)).then(pl.lit("hours are not a number from 0"))
    good = rejects.sift(frame, plays.name, bad, ["user", "item", "hours"])
    good = good.with_columns(number).with_columns(stars().alias("rating"), pl.col("row").alias("timestamp"))
    return Raw(known, games.name, rejects, interactions=interactions(good, known, plays.name, rejects))
