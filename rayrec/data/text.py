"""Titles as text."""

from __future__ import annotations

import unicodedata


def fold(text: str) -> str:
    """NFC, with runs of white space as one space and none at the ends; case, quotes and punctuation stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())
