"""Titles as text."""

import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa


def fold(text: str) -> str:
    """NFC, with runs of white space as one space and none at the ends; case, quotes and punctuation stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def numbered(texts: Any, numbers: dict[str, int], key: Callable[[str], str] = fold) -> np.ndarray:
    """Number texts by their ``key``, (N,) int64: equal ones have equal numbers, new ones are added to ``numbers``."""
    coded = pa.chunked_array([*getattr(texts, "chunks", [texts])], pa.string()).combine_chunks().dictionary_encode()
    own = [numbers.setdefault(key(text), len(numbers)) for text in coded.dictionary.to_pylist()]
    return np.array(own, np.int64)[coded.indices.to_numpy()]
