"""Ratings of any scale as stars from 0 to 5: METHODS calls an item liked above 3 and good from 4 stars."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import polars as pl

#: Stars of what counts as liked, at least, and as disliked, at most (RecPO).
LIKED, DISLIKED = 4.0, 2.0
#: A file with more rows than this outside a scale, in shares of its rated rows, is not of that scale.
OUTSIDE = 0.01
#: One row may be outside, if there are so many rated ones.
FEWEST = 5


class Scale(NamedTuple):
    """The values ``low`` to ``high`` that ratings may have, a file's own, and what a person should know of them."""

    low: float
    high: float
    name: str
    told: str
    liked: float | None = None  #: least value that counts as liked; None: rows of this file are unrated
    by_hand: bool = False  #: ``liked`` was given and is not the one of the scale

    def stars(self, rating: pl.Expr) -> pl.Expr:
        """The stars of ratings that are in the scale."""
        if self.liked is None:
            return pl.lit(None, pl.Float64)
        if not self.by_hand:
            return _KNOWN[self.name](rating)
        up = 4 + ((rating - self.liked) / max(self.high - self.liked, 1e-9) * 2).floor() / 2
        down = 1 + ((rating - self.low) / (self.liked - self.low) * 4).floor() / 2
        return pl.when(rating == self.high).then(5.0).when(rating >= self.liked).then(up).otherwise(down)


_KNOWN = {
    "0 or 1": lambda rating: 1 + 4 * rating,
    "-1 to 1": lambda rating: 3 + 2 * rating,
    "0 to 5": lambda rating: rating,
    "0 to 10": lambda rating: rating / 2,
}
_BORDERS = {"0 or 1": (1.0, 0.0), "-1 to 1": (1.0, -1.0), "0 to 5": (LIKED, DISLIKED), "0 to 10": (8.0, 4.0)}


def of(ratings: Iterable[pl.Series], liked_from: float | None) -> Scale:
    """Return the scale of a file's ratings, which come in parts (Float64, null where there is none).

    ``liked_from`` is the least rating that counts as liked; without it a file of no known scale is unrated. Raises
    ValueError: ``liked_from`` would make all rows liked, or none.
    """
    rows, low, high = Counter[str](), math.inf, -math.inf
    for part in ratings:
        rated = part.drop_nulls().drop_nans()
        finite = rated.filter(rated.is_finite())
        ends = finite.sort()
        low, high = min([low, *ends.head(1)]), max([high, *ends.tail(1)])
        rows.update(_rows(rated, finite))
    if low > high:
        return Scale(0, 5, "0 to 5", "none", LIKED)
    name = _name(rows)
    span = f"{low:g} to {high:g}" if name != "0 or 1" else "0 and 1"
    if liked_from is not None and (name is None or liked_from != _BORDERS[name][0]):
        if low == high:
            raise ValueError(
                f"--liked-from {liked_from:g}: all ratings are {low:g}, and no value divides them. Leave it out."
            )
        if not low < liked_from <= high:
            raise ValueError(
                f"--liked-from {liked_from:g}: the ratings are from {low:g} to {high:g}. Take a value above {low:g} "
                f"and up to {high:g}."
            )
        told = f"{span}: {liked_from:g} and more count as liked (4 to 5 stars, others 1 to 2.5), as --liked-from says"
        return Scale(*(_ends(name) if name else (low, high)), name or span, told, liked_from, True)
    if name is None:
        told = f"{span}, no known scale: rows count as unrated. --liked-from says from which value a title is liked"
        return Scale(low, high, span, told)
    if name in ("0 or 1", "-1 to 1") and low == high:
        return Scale(low, high, name, f"all are {low:g}, which says nothing: rows count as unrated")
    liked, disliked = _BORDERS[name]
    if name in ("0 or 1", "-1 to 1"):
        told = f"{span}: {liked:g} counts as liked (5 stars), {disliked:g} as disliked (1 star)"
    else:
        of = "stars" if name == "0 to 5" else "taken as 0 to 10, two to a star"
        told = f"{span}, {of}: {liked:g} and more count as liked, {disliked:g} and less as disliked"
    told += "; --liked-from sets another border"
    return Scale(*_ends(name), name, told, liked)


def _ends(name: str) -> tuple[float, float]:
    """The least and the largest value of a scale."""
    low, high = map(float, name.replace(" or ", " to ").split(" to "))
    return low, high


def _rows(rated: pl.Series, finite: pl.Series) -> dict[str, int]:
    """Count the rows that :func:`_name` asks for."""
    return {
        "rated": len(rated),
        "finite, not 0 or 1": int((~finite.is_in([0.0, 1.0])).sum()),
        "finite, not -1, 0 or 1": int((~finite.is_in([-1.0, 0.0, 1.0])).sum()),
        "not 0 or 1": int((~rated.is_in([0.0, 1.0])).sum()),
        "not 0 to 5": int((~rated.is_between(0, 5)).sum()),
        "not 0 to 10": int((~rated.is_between(0, 10)).sum()),
        "above 5": int((rated > 5).sum()),
    }


def _name(rows: Mapping[str, int]) -> str | None:
    """The known scale that ratings are of, by the counts of :func:`_rows`; single values outside are faults of their
    rows."""
    if not rows["finite, not 0 or 1"]:
        return "0 or 1"
    if not rows["finite, not -1, 0 or 1"]:
        return "-1 to 1"
    few = OUTSIDE * rows["rated"]
    some = max(few, rows["rated"] >= FEWEST)
    if rows["not 0 or 1"] <= few:
        return "0 or 1"
    if rows["not 0 to 5"] <= some:
        return "0 to 5"
    if rows["not 0 to 10"] <= some and rows["above 5"] >= rows["rated"] / 4:
        return "0 to 10"
    return None
