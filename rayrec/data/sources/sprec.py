"""SPRec's rows: train/valid/test.json ({instruction, input, output}), id2name, name2genre and genre_dict."""

import unicodedata
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.objects import read_json
from rayrec.data.sources.reading import Raw, Rejects, item_frame, window_frame

BETWEEN = '", "'


#: The byte of each character of cp1252 and of Latin-1, from which decoders take the five bytes that cp1252 leaves out.
_BYTES = {chr(byte): byte for byte in range(256)}
_BYTES |= {text: byte for byte in range(256) if (text := bytes([byte]).decode("cp1252", "ignore"))}


def repair(title: str) -> str:
    """Return the title that was UTF-8 and then read as Latin-1 or cp1252, or ``title`` where it was not."""
    try:
        return bytes(_BYTES[character] for character in title).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return title


def quoted(text: str) -> str:
    """Return the text between the first and the last double quote: a title may itself hold and end in quotes."""
    first, last = text.find('"'), text.rfind('"')
    return text[first + 1 : last] if last > first else ""


def split_titles(text: str, known: Container[str]) -> list[str]:
    """Return the titles of ``A", "B", "C``; where a known title holds the separator itself, the longest one wins."""
    pieces, titles = text.split(BETWEEN), []
    while pieces:
        ends = range(len(pieces), 1, -1)
        end = next((end for end in ends if BETWEEN.join(pieces[:end]) in known), 1)
        titles.append(BETWEEN.join(pieces[:end]))
        del pieces[:end]
    return titles


def _items(folder: Path, rejects: Rejects) -> pl.DataFrame:
    found = files.find(folder, "name2genre.json")
    genres = read_json(found[0], dict) if found else {}
    rows = []
    for row, (item, title) in enumerate(read_json(files.one(folder, "id2name.json"), dict).items(), 1):
        names = genres.get(title, []) if isinstance(title, str) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            rows.append((row, item, title, names))
        else:
            rejects.add("id2name.json", row, "wanted a title and a list of genres", f"{item}: {title}")
    return item_frame(rows, "id2name.json", rejects)


def _parse(row: Any, known: Container[str]) -> tuple[list[str], str] | str:
    """Return history and target, or the fault of the row."""
    if not isinstance(row, dict) or not isinstance(row.get("input"), str) or not isinstance(row.get("output"), str):
        return "wanted the texts `input` and `output`"
    history, target = split_titles(quoted(row["input"]), known), quoted(row["output"])
    if not all(title.strip() for title in (*history, target)):
        return "empty title: wanted history and target in double quotes"
    return history, target


def _known(title: str, known: Container[str], composed: Mapping[str, str]) -> str:
    """The title of the catalogue that ``title`` is when repaired, or composed (NFC) and stripped, else ``title``."""
    if title in known:
        return title
    if (fixed := repair(title)) in known:
        return fixed
    return composed.get(unicodedata.normalize("NFC", title.strip()), title)


def read(folder: Path) -> Raw:
    """Read ready windows; each row is its own user (the data names none) and its time is its number in its file.

    A title outside the catalogue is repaired where the repaired one is in it, else kept as it is.
    """
    rejects, counts = Rejects(), Counter()
    catalogue, genre_file = _items(folder, rejects), files.find(folder, "genre_dict.json")
    known, windows = set(catalogue["title"]), []
    composed = {unicodedata.normalize("NFC", title.strip()): title for title in known}
    for split in ("train", "valid", "test"):
        file = f"{split}.json"
        for number, row in enumerate(read_json(files.one(folder, file), list), 1):
            parsed = _parse(row, known)
            if isinstance(parsed, str):
                rejects.add(file, number, parsed, str(row))
                continue
            found = [*parsed[0], parsed[1]]
            titles = [_known(title, known, composed) for title in found]
            changed = sum(a != b for a, b in zip(found, titles, strict=True))
            counts["repaired_titles"] += changed
            counts[f"repaired_rows_{split}"] += changed > 0
            windows.append((split, f"{split}-{number:06d}", number, titles[:-1], titles[-1]))
    selected = list(read_json(genre_file[0], dict)) if genre_file else None
    frame = window_frame(windows)
    return Raw(catalogue, "id2name.json", rejects, windows=frame, genres=selected, counts=counts)
