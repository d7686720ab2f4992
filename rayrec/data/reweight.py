"""RW: weights that give each genre the share among targets that it has in histories (IFairLRS, Jiang et al.)."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from rayrec.data.catalogue import Catalogue
from rayrec.data.mapped import slices

#: Weight of an example whose genres no history has: 0 is that of padding, whose tokens the mean of a loss leaves out.
_LEAST = 1e-30


def by_genre(rows: pa.Table, catalogue: Catalogue) -> np.ndarray:
    """Weights (E,) of the examples ``rows``, with mean 1.

    A selected genre g has w_g = (its share of all history titles) / (its share of all targets). An example's weight is
    the mean of w_g over its target's selected genres, 1 where it has none. ValueError: no title has a genre, or no
    target has one of a history.
    """
    selected = set(catalogue.selected_genres)
    named = zip(catalogue.titles, catalogue.genres, strict=True)
    genres = {title: [g for g in names if g in selected] for title, names in named}

    def targets() -> Iterator[list[str]]:
        return (genres.get(target, []) for some in slices(rows) for target in some["target"].to_pylist())

    titles = (title for some in slices(rows) for history in some["history"].to_pylist() for title in history)
    liked, asked = _shares(genres.get(title, []) for title in titles), _shares(targets())
    if not liked or not asked:
        raise ValueError(
            f"--reweight genre: the titles of {len(rows)} training rows have no genre, wanted some. Take data "
            "with genres, or --reweight none."
        )
    ratio = {g: liked.get(g, 0.0) / share for g, share in asked.items()}
    weights = np.fromiter((np.mean([ratio[g] for g in names]) if names else 1.0 for names in targets()), float)
    if not weights.any():
        raise ValueError(
            f"--reweight genre: histories have the genres {sorted(liked)}, targets {sorted(asked)}, wanted one in "
            "both. Take other data, or --reweight none."
        )
    return np.maximum(weights / weights.mean(), _LEAST)


def _shares(titles: Iterable[list[str]]) -> dict[str, float]:
    """Each genre's share of the genre mentions."""
    mass = Counter(genre for names in titles for genre in names)
    return {genre: count / mass.total() for genre, count in mass.items()}
