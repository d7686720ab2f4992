"""Genres in the forms that files have them."""

import ast
import contextlib
import csv
import json
import re
from collections.abc import Iterable
from typing import Any

import polars as pl

#: What may separate genres, surest first: where one is in a column, later ones are part of names.
SEPARATORS = ("|", ";", ",")
#: Cells and names that are no genre.
NONE = {"(no genres listed)", "\\N", "nan", "NaN", "null", "NULL", "None"}


def lists(column: pl.Series, spaces: bool = False) -> tuple[pl.Series, str]:
    """Return the genres of each row, and what the plan should tell about the form; empty for `a|b` and for lists.

    Cells are text with ``|``, ``;`` or ``,`` between genres, or space with ``spaces``; or JSON's and Python's lists of
    text or of objects with a name; or, in Parquet, lists of either.
    """
    told = ""
    if isinstance(column.dtype, pl.List | pl.Array):
        cells = {i: _names(cell) for i, cell in enumerate(column.to_list())}
        found = [cells[i] for i in range(len(column))]
    else:
        texts = column.cast(pl.String).fill_null("").to_list()
        cells = {text: _literal(text) for text in set(texts)}
        plain = [text for text, names in cells.items() if names is None]
        separator = next((mark for mark in SEPARATORS if any(mark in text for text in plain)), " " if spaces else None)
        cells |= {text: _strip(text.split(separator) if separator else [text]) for text in plain}
        found = [cells[text] or [] for text in texts]
        if separator in SEPARATORS[1:]:
            told = f"separated by {separator!r}"
        elif len(plain) < len(cells):
            told = "written as lists"
    return pl.Series("genres", found, pl.List(pl.String)), told


def _strip(names: Iterable[str]) -> list[str]:
    return [name for name in (name.strip() for name in names) if name and name not in NONE]


def _names(value: Any) -> list[str]:
    """The names in a list of texts or of objects with names."""
    if value is None:
        return []
    if isinstance(value, dict):
        texts = [text for text in value.values() if isinstance(text, str)]
        value = [value.get("name") or (texts[0] if texts else "")]
    elif isinstance(value, str) or not isinstance(value, list | tuple | set):
        value = [value]
    return [n for one in value for n in (_names(one) if isinstance(one, dict | list | tuple) else _strip([str(one)]))]


def _literal(text: str) -> list[str] | None:
    """The names of a list in JSON, Python or PostgreSQL, or of quoted names with commas between; else None."""
    text = text.strip()
    several = re.fullmatch(r"""'.+'|".+\"""", text) and re.search(r"""['"]\s*,\s*['"]""", text)
    if several or re.fullmatch(r"""'[^']+'|"[^"]+\"""", text):
        text = f"[{text}]"
    if text[:1] not in ("[", "{", "("):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return _names(json.loads(text))
    text = re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text)  # NumPy writes no commas, and Python would join the names
    try:
        value = ast.literal_eval(text)
        return _names(ast.literal_eval(f"[{text[1:-1]}]") if isinstance(value, set) else value)  # in the order written
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        bare = re.fullmatch(r"\{([^{}\r\n]{,9999})\}", text)  # PostgreSQL's lists
        return _strip(next(csv.reader([bare[1]], escapechar="\\"))) if bare else None
