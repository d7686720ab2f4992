"""Which candidates a text names."""

import re
from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa

from rayrec.data.text import fold


def named(text: str, candidates: Sequence[str]) -> list[str]:
    """Return the candidates that ``text`` names, in their own order.

    Compared as NFC with white space folded, case kept. Longer titles are found first and never overlap, so a title that
    is part of another one counts only where it is alone; inside a longer word it is not named. Scripts without spaces
    show no borders of words, so there a title is named wherever it is.
    """
    left, found = fold(text), set()
    for title in sorted(candidates, key=lambda one: -len(fold(one))):
        left, times = _pattern(fold(title)).subn("\0", left)
        if times:
            found.add(title)
    return [title for title in candidates if title in found]


def chosen_lists(outputs: pa.Table, examples: pa.Table) -> list[list[str]]:
    """Return the list of each row of ``outputs`` (schema.PREDICTIONS) made for ``examples``, in the same order.

    Scored candidates are ranked, ties against the target; a text gives the one candidate that it names, or nothing.
    """
    lists = []
    rows = zip(
        *(outputs[name].to_pylist() for name in ("decode", "texts", "logprobs", "target")),
        examples["candidates"].to_pylist(),
        strict=True,
    )
    for decode, texts, logprobs, target, candidates in rows:
        if decode == "score":
            order = sorted(zip(texts, logprobs, strict=True), key=lambda one: (-one[1], one[0] == target))
            lists.append([title for title, _ in order])
        else:
            found = named(texts[0] if texts else "", candidates)
            lists.append(found if len(found) == 1 else [])
    return lists


#: Thai to Tibetan, Burmese, Khmer, kana and Han: scripts without spaces between words.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
#: Signs that belong to the letter before, and that `\\w` leaves out: accents, Hebrew and Arabic points, and from
#: Devanagari to Sinhala the vowels, but for the two strokes that end sentences.
_SIGNS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0df3"
_LETTER = rf"(?:[^\W{_UNSPACED}]|[{_SIGNS}])"


@lru_cache(maxsize=1 << 16)
def _pattern(title: str) -> re.Pattern[str]:
    start = f"(?<!{_LETTER})" if re.match(_LETTER, title) else ""
    end = f"(?!{_LETTER})" if re.search(f"{_LETTER}$", title) else ""
    return re.compile(start + re.escape(title) + end if title else r"(?!)")
