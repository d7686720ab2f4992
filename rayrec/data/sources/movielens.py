"""MovieLens by GroupLens: ratings.csv (userId, movieId, rating, timestamp), movies.csv (movieId, title, genres)."""

from pathlib import Path

import polars as pl

from rayrec.data.sources.reading import Raw, Rejects, interactions, items, read_csv, rename

NO_GENRE = "(no genres listed)"


def read(folder: Path) -> Raw:
    """Read ratings with times in seconds; genres are ``a|b``."""
    rejects = Rejects()
    movies, ratings = folder / "movies.csv", folder / "ratings.csv"
    films = rename(read_csv(movies, rejects), {"movieId": "item", "title": "title", "genres": "genres"}, movies)
    films = films.with_columns(pl.col("genres").str.split("|").list.set_difference(pl.lit([NO_GENRE])))
    known = items(films, movies.name, rejects)
    names = {"userId": "user", "movieId": "item", "rating": "rating", "timestamp": "timestamp"}
    plays = rename(read_csv(ratings, rejects), names, ratings)
    return Raw(known, movies.name, rejects, interactions=interactions(plays, known, ratings.name, rejects))
