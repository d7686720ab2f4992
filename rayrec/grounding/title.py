"""The ``title`` embedder: exact match first, then character n-grams. Needs no model."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rayrec.data.text import fold

if TYPE_CHECKING:
    from scipy import sparse


class TitleEmbedder:
    """TF-IDF over character n-grams (2 to 4, within words) of the catalogue's titles, rows of unit length.

    A gram weighs its count times 1 + ln((1 + titles) / (1 + titles that have it)); the order by L2 distance is that by
    cosine. A text without any known n-gram is equally far from all items. Embedders of equal titles are equal.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = tuple(titles)
        having = Counter(gram for title in self._titles for gram in {*_grams(title)})
        self._columns = {gram: column for column, gram in enumerate(sorted(having))}
        shares = [(1 + len(self._titles)) / (1 + having[gram]) for gram in self._columns]
        self._weights_G = np.log(np.array(shares)) + 1
        self._raw = {title: item for item, title in reversed(list(enumerate(self._titles)))}
        self._folded = {fold(title): item for item, title in reversed(list(enumerate(self._titles)))}

    def embed(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return (n, n-grams) float64 rows of length 1, or 0 for a text without known n-grams."""
        from scipy import sparse

        ends, columns, counts = array("q", [0]), array("q"), array("d")
        for text in texts:
            found = Counter(self._columns[gram] for gram in _grams(text) if gram in self._columns)
            for column in sorted(found):
                columns.append(column)
                counts.append(found[column])
            ends.append(len(columns))
        numbers = np.array(columns, np.int64)
        values = np.array(counts) * self._weights_G[numbers]
        row = np.repeat(np.arange(len(texts)), np.diff(np.array(ends)))
        lengths_T = np.sqrt(np.bincount(row, values**2, len(texts)))
        return sparse.csr_matrix((values / lengths_T[row], numbers, ends), (len(texts), len(self._columns)))

    def exact(self, text: str) -> int | None:
        """Return the item whose title is ``text``, else the first whose title is equal after :func:`fold`."""
        return self._raw.get(text, self._folded.get(fold(text)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TitleEmbedder) and self._titles == other._titles

    def __hash__(self) -> int:
        return hash(self._titles)


def _grams(text: str) -> Iterator[str]:
    """The n-grams of every word with a space on both sides; a word that has none is one itself."""
    for word in fold(text).lower().split():
        for n in (2, 3, 4):
            yield from (f" {word} "[start : start + n] for start in range(max(1, len(word) + 3 - n)))
            if len(word) + 2 <= n:
                break
