"""The ``title`` embedder: exact match first, then character n-grams. Needs no model."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer


def fold(text: str) -> str:
    """NFC, with runs of white space as one space and none at the ends; case, quotes and punctuation stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class TitleEmbedder:
    """TF-IDF over character n-grams (2 to 4, within words) of the catalogue's titles, rows of unit length.

    On unit rows the order by L2 distance is the order by cosine. A text without any n-gram of the catalogue is
    equally far from all items. Two embedders are equal where their titles are.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self._titles = tuple(titles)
        self._vectorizer = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), preprocessor=_lower, dtype=np.float64
        )
        self._vectorizer.fit(self._titles)
        self._raw = {title: item for item, title in reversed(list(enumerate(self._titles)))}
        self._folded = {fold(title): item for item, title in reversed(list(enumerate(self._titles)))}

    def embed(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return (n, n-grams) float64 rows of length 1, or 0 for a text without known n-grams."""
        return sparse.csr_matrix(self._vectorizer.transform(texts))

    def exact(self, text: str) -> int | None:
        """Return the item whose title is ``text``, else the first whose title is equal after :func:`fold`."""
        return self._raw.get(text, self._folded.get(fold(text)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TitleEmbedder) and self._titles == other._titles

    def __hash__(self) -> int:
        return hash(self._titles)


def _lower(text: str) -> str:
    return fold(text).lower()
