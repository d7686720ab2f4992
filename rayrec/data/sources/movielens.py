"""MovieLens by GroupLens, of every size.

ratings.csv (userId, movieId, rating, timestamp) and movies.csv (movieId, title, genres): 20M, 25M, 32M and latest.
ratings.dat and movies.dat, the same columns with ``::`` between and no header: 1M (Latin-1) and 10M.
u.data (user, item, rating, timestamp) and u.item (item, title, dates, address, a 0 or 1 for each genre; Latin-1): 100k.
"""

from pathlib import Path

from rayrec.data.sources import files
from rayrec.data.sources.columns import TABS, Form, read_csv
from rayrec.data.sources.reading import Raw, Rejects, interactions, item_frame, items, read_lines

_RATED = {"userId": "user", "movieId": "item", "rating": "rating", "timestamp": "timestamp"}
#: The order of u.item, which u.genre names too.
_GENRES = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]


def read(folder: Path) -> Raw:
    """Read ratings.csv and movies.csv, times in seconds; genres are ``a|b``."""
    rejects = Rejects()
    movies, ratings = files.one(folder, "movies.csv"), files.one(folder, "ratings.csv")
    films = read_csv(movies, rejects, {"movieId": "item", "title": "title", "genres": "genres"})
    known = items(films, movies.name, rejects)
    plays = read_csv(ratings, rejects, _RATED)
    return Raw(known, movies.name, rejects, interactions=interactions(plays, known, ratings.name, rejects))


def read_dat(folder: Path) -> Raw:
    """Read ratings.dat and movies.dat."""
    rejects = Rejects()
    movies, ratings = files.one(folder, "movies.dat"), files.one(folder, "ratings.dat")
    rows = []
    for row, line in read_lines(movies, latin=True):
        item, _, rest = line.partition("::")  # a title may hold colons
        title, colons, genres = rest.rpartition("::")
        if colons:
            rows.append((row, item, title, genres.split("|")))
        else:
            rejects.add(movies.name, row, "wanted id::title::genres", line)
    known = item_frame(rows, movies.name, rejects)
    # Cut at single colons, so that each pair of them leaves an empty column between.
    names = ["userId", "a", "movieId", "b", "rating", "c", "timestamp"]
    plays = read_csv(ratings, rejects, _RATED, form=Form(":", quoted=False, names=names))
    return Raw(known, movies.name, rejects, interactions=interactions(plays, known, ratings.name, rejects))


def read_100k(folder: Path) -> Raw:
    """Read u.data and u.item."""
    rejects = Rejects()
    movies, ratings = files.one(folder, "u.item"), files.one(folder, "u.data")
    rows = []
    for row, line in read_lines(movies, latin=True):
        cells = line.split("|")
        if len(cells) == 5 + len(_GENRES):
            marks = zip(_GENRES, cells[5:], strict=True)
            rows.append(
                (row, cells[0], cells[1], [genre for genre, mark in marks if mark == "1" and genre != "unknown"])
            )
        else:
            rejects.add(movies.name, row, f"{len(cells)} columns instead of {5 + len(_GENRES)}", line)
    known = item_frame(rows, movies.name, rejects)
    plays = read_csv(ratings, rejects, _RATED, form=TABS._replace(names=[*_RATED]))
    return Raw(known, movies.name, rejects, interactions=interactions(plays, known, ratings.name, rejects))
