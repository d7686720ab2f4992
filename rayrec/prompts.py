"""Prompts and answers as token ids: the same tokens for SFT, generation, preference training and evaluation.

The boundary between prompt and answer, and between titles, is a boundary between tokens: every piece is tokenised
apart, so a title has the same tokens in every place, and no title can merge with the text around it.
"""

import contextlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from rayrec.data.likings import MIDDLE, NO, YES
from rayrec.data.mapped import slices
from rayrec.seeds import seed_of

INSTRUCTION = "A user chose these titles, oldest first, one per line:\n"
QUESTION = "Answer with the one title that this user chooses next, and nothing else."
#: Wordings of a choice from candidates: before the history, before the candidates, and at the end.
CHOICES = (
    (
        INSTRUCTION,
        "One of these titles is what the user chose next:\n",
        "Answer with that one title, and nothing else.",
    ),
    (
        "What a user has chosen so far, from the first to the last:\n",
        "Candidates for the next choice:\n",
        "Write the candidate that this user chooses next, exactly as it stands above, and nothing else.",
    ),
    (
        "The history of a user, one title per line:\n",
        "The next title is on this list:\n",
        "Which one is it? Copy that title, and write nothing else.",
    ),
)
#: Histories in two halves (TALLRec): before the liked titles, the disliked ones, the candidates, and at the end.
HALVES = ("User preference, one title per line:\n", "User unpreference:\n")
BY_LIKING = {
    "liking": (*HALVES, "Will the user like this title?\n", "Answer with Yes or No, and nothing else."),
    "title_by_liking": (*HALVES, *CHOICES[0][1:]),
}
_PLACEHOLDER = "rayrec-user-content"
# Llama's chat template writes today's date into the prompt; a run resumed tomorrow must see the same tokens.
_TODAY = datetime(2024, 7, 26)


class Frame(NamedTuple):
    """The tokens around the titles of a row: ``middle`` before candidates, ``second`` before disliked titles."""

    before: list[int]
    middle: list[int]
    after: list[int]
    second: Sequence[int] = ()


class Items(NamedTuple):
    """Tokens of items, which follow the titles of a prompt (models/item_vectors.py).

    They come after the ``vocabulary`` tokens of the model, one for each of ``titles``, and one for all other titles.
    """

    titles: Sequence[str]
    vocabulary: int


class Template:
    """One prompt form, bound to a tokenizer; make it with :func:`make_template`. It can be pickled.

    A prompt is ``before``, then every title of the history followed by ``separator``, for a choice ``middle`` and the
    candidates in the same way, then ``after``. Where there are several frames, ``seed`` and the example's id choose
    one, the same in training and in evaluation.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_id: int,
        frames: list[Frame],
        separator: list[int],
        rated: bool = False,
        seed: int = 0,
        items: Items | None = None,
    ):
        self.tokenizer, self.eos_id, self.seed = tokenizer, eos_id, seed
        self.frames, self.separator, self.rated = frames, separator, rated
        self._cache: dict[str, list[int]] = {}
        titles, vocabulary = items or ((), 0)
        self._items = {title: vocabulary + i for i, title in enumerate(titles)}
        self._no_item = [vocabulary + len(titles)] if items else []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tokenizer": self.tokenizer.to_str(), "_cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, tokenizer=_plain_tokenizer(state["tokenizer"]))

    def prompts(self, rows: pa.Table) -> list[list[int]]:
        """Return the prompt's tokens of every row (schema.EXAMPLES or schema.PREFERENCES)."""

        def lists(name: str, wanted: bool = True) -> Iterable[Any]:
            return rows[name].to_pylist() if wanted and name in rows.column_names else itertools.repeat(None)

        several = len(self.frames) > 1
        columns = (lists("history_ratings", self.rated), lists("candidates"), lists("example_id", several))
        made = []
        for history, ratings, candidates, name in zip(rows["history"].to_pylist(), *columns, strict=False):
            frame = seed_of(self.seed, "prompt", name) % len(self.frames) if several else 0
            made.append(self.prompt_ids(history, ratings, candidates, frame))
        return made

    def lengths(self, rows: pa.Table) -> np.ndarray:
        """Return the number of tokens of every row's prompt, (N,)."""
        if self.rated or len(self.frames) > 1:
            made = (prompt for some in slices(rows) for prompt in self.prompts(some))
            return np.fromiter(map(len, made), np.int64, len(rows))
        before, middle, after, _ = self.frames[0]
        found = self._sums(rows["history"]) + len(before) + len(after)
        if "candidates" not in rows.column_names or rows["candidates"].null_count == len(rows):
            return found
        among = self._sums(rows["candidates"]) + len(middle)
        return found + np.where(rows["candidates"].is_valid().to_numpy(), among, 0)

    def answer_lengths(self, titles: pa.ChunkedArray) -> np.ndarray:
        """Return the number of tokens of every title as an answer, EOS included, (N,)."""
        coded = titles.combine_chunks().dictionary_encode()
        each = np.array([len(self.answer_ids(title)) for title in coded.dictionary.to_pylist()], np.int64)
        return each[coded.indices.to_numpy(zero_copy_only=False)]

    def _sums(self, lists: pa.ChunkedArray) -> np.ndarray:
        """Return the tokens of all titles of each list with their separators, (N,); every title is counted once."""
        joined = lists.combine_chunks()
        coded = joined.flatten().dictionary_encode()
        each = np.array(list(map(len, self._shown(coded.dictionary.to_pylist()))), np.int64) + len(self.separator)
        ends = np.concatenate([[0], each[coded.indices.to_numpy(zero_copy_only=False)].cumsum()])
        counts = joined.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        last = counts.cumsum()
        return ends[last] - ends[last - counts]

    def prompt_ids(
        self,
        history: Sequence[str],
        ratings: Sequence[float | None] | None = None,
        candidates: Sequence[str] | None = None,
        frame: int = 0,
    ) -> list[int]:
        """Return the prompt's tokens, ``Title | Rating: r`` per title where ``ratings`` are given (RecPO)."""
        before, middle, after, second = self.frames[frame]
        among = [] if candidates is None else [*middle, *self._listed(self._shown(candidates))]
        return [*before, *self._history(history, ratings, None if candidates is None else second), *among, *after]

    def _history(
        self, history: Sequence[str], ratings: Sequence[float | None] | None, second: Sequence[int] | None
    ) -> list[int]:
        """The titles of a history; ``second`` is the frame's where there are candidates."""
        titles = self._shown(history)
        if ratings is not None:
            marks = self._encode(["" if r is None else f" | Rating: {r:g}" for r in ratings])
            titles = [title + mark for title, mark in zip(titles, marks, strict=True)]
        return self._listed(titles)

    def _listed(self, titles: Iterable[list[int]]) -> list[int]:
        """Titles, each followed by the separator."""
        return [token for title in titles for token in (*title, *self.separator)]

    def answer_ids(self, title: str) -> list[int]:
        """Return the tokens of ``title`` as the policy is to write it, EOS included."""
        return [*self._encode([title])[0], self.eos_id]

    def scored_ids(self, answer: str) -> list[int]:
        """Return the tokens by whose probability an answer is scored."""
        return self.answer_ids(answer)

    def sequence_ids(self, titles: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return (prompt, answer) of a pre-training row: an empty prompt, then every title with its EOS as a target."""
        return self.prompt_ids([]), [token for title in self._encode(titles) for token in (*title, self.eos_id)]

    def text(self, ids: Iterable[int]) -> str:
        """Return the text of an answer up to its first EOS, spaces and quotes as they are."""
        return self.tokenizer.decode(self.ended(ids)[:-1], skip_special_tokens=True)

    def ended(self, ids: Iterable[int]) -> list[int]:
        """Return the tokens of an answer up to its first EOS, which is added to an answer that was cut short."""
        return [*itertools.takewhile(lambda token: token != self.eos_id, map(int, ids)), self.eos_id]

    def lossy(self, titles: Iterable[str]) -> list[str]:
        """Return the titles that this tokenizer does not give back as they went in (it may normalise Unicode)."""
        return [title for title in titles if self.text(self.answer_ids(title)) != title]

    def highest(self) -> int:
        """Return the highest id among the tokens of the frames and of all texts so far."""
        known = [*self._cache.values(), [self.eos_id], self.separator, *itertools.chain(*self.frames)]
        return max(token for ids in known for token in ids)

    @property
    def known(self) -> int:
        """Number of texts whose tokens are kept."""
        return len(self._cache)

    def forget(self) -> None:
        """Drop the tokens of all texts so far; they are made again when they are asked for."""
        self._cache.clear()

    def _shown(self, titles: Sequence[str]) -> list[list[int]]:
        """Titles as prompts have them: the text, and where items have tokens the item's."""
        if not self._no_item:
            return self._encode(titles)
        found = [[self._items[title]] if title in self._items else self._no_item for title in titles]
        return [text + item for text, item in zip(self._encode(titles), found, strict=True)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise data, each text once."""
        with contextlib.suppress(KeyError):
            return [self._cache[text] for text in texts]
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        found = self.tokenizer.encode_batch(new, add_special_tokens=False)
        self._cache.update((text, encoding.ids) for text, encoding in zip(new, found, strict=True))
        return [self._cache[text] for text in texts]


class HalvesTemplate(Template):
    """Asks for one of the candidates, with the history in two halves (S-DPO's row of TALLRec).

    A title above 3 or without a rating counts as liked.
    """

    def _history(
        self, history: Sequence[str], ratings: Sequence[float | None] | None, second: Sequence[int] | None
    ) -> list[int]:
        if second is None:
            return super()._history(history, None, None)
        halves: tuple[list[list[int]], list[list[int]]] = [], []
        for title, rating in zip(self._shown(history), ratings or [None] * len(history), strict=True):
            halves[rating is not None and rating <= MIDDLE].append(title)
        return [*self._listed(halves[0]), *second, *self._listed(halves[1])]


class LikingTemplate(HalvesTemplate):
    """Asks whether the user will like one title, the only candidate of a row (TALLRec)."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        if self.scored_ids(YES) == self.scored_ids(NO):
            raise ValueError(f"The tokenizer begins {YES} and {NO} with one token. Take another model, or --ask title.")

    def scored_ids(self, answer: str) -> list[int]:
        """Return the first token, at which TALLRec compares the answers."""
        return self.answer_ids(answer)[:1]


def trim(
    rows: list[dict[str, Any]],
    schema: pa.Schema,
    rooms: Sequence[int],
    template: Template,
    least: int = 1,
    long: Collection[str] = (),
) -> list[list[int]]:
    """Leave titles out of histories whose prompts have more tokens than there is room; return all prompts.

    Such ``rows`` (of ``schema``) lose the ``long`` titles, which no answer can hold, then their oldest ones, as few as
    need be. ``least`` stay, so that a prompt may still be too long.
    """

    def asked(numbers: Sequence[int]) -> list[list[int]]:
        return template.prompts(pa.Table.from_pylist([rows[i] for i in numbers], schema=schema))

    def open_(numbers: Iterable[int]) -> list[int]:
        return [i for i in numbers if len(prompts[i]) > rooms[i] and len(rows[i]["history"]) > least]

    prompts = asked(range(len(rows)))
    left = open_(range(len(rows)))
    for i in left if long else ():
        kept = [place for place, title in enumerate(rows[i]["history"]) if title not in long]
        if len(kept) >= least:
            _keep(rows[i], kept)
            (prompts[i],) = asked([i])
    while left := open_(left):
        for i in left:
            _keep(rows[i], range(1, len(rows[i]["history"])))
        for i, made in zip(left, asked(left), strict=True):
            prompts[i] = made
    return prompts


def _keep(row: dict[str, Any], places: Iterable[int]) -> None:
    """Leave only the titles at ``places`` in a row's history."""
    for name in ("history", "history_ratings"):
        if row.get(name) is not None:
            row[name] = [row[name][place] for place in places]


@lru_cache(maxsize=4)
def _plain_tokenizer(serialised: str) -> Tokenizer:
    """The tokenizer alone, without transformers around it: a Ray Data task starts in a second, not in ten."""
    tokenizer = Tokenizer.from_str(serialised)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # data never means a special token, whatever it spells
    return tokenizer


def resolve_template(name: str, model: str, tokenizer: Any) -> str:
    """Resolve ``auto``: `compact` for tiny, `chat` where the tokenizer has a template, else `instruct`."""
    if name != "auto":
        return name
    return "compact" if model == "tiny" else "chat" if tokenizer.chat_template else "instruct"


def make_template(
    name: str,
    tokenizer: Any,
    candidates: bool = False,
    rated: bool = False,
    ask: str = "title",
    seed: int = 0,
    items: Items | None = None,
) -> Template:
    """Return the template called ``name``.

    ``compact`` separates titles by EOS, so that a whole history is a pre-training sequence in which every title is an
    answer; ``instruct`` is plain English; ``chat`` is the same English in the tokenizer's own chat template.
    ``candidates`` asks for a choice from a list, ``rated`` writes the ratings of a history; ``ask`` is the setting of
    that name: "title"; "title_by_liking" splits the history by its ratings; "liking" asks about one title at a time
    (TALLRec). ``seed`` chooses among wordings, and ``items`` shows tokens of items. Raises ValueError: the name is
    unknown, or the tokenizer lacks EOS or, for ``chat``, a usable chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no EOS token, by which answers end. Set eos_token in its folder.")
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} has no tokenizer.json. Convert it with transformers' AutoTokenizer."
        )
    kind = {"liking": LikingTemplate, "title_by_liking": HalvesTemplate}.get(ask, Template)
    plain, eos = _plain_tokenizer(tokenizer.backend_tokenizer.to_str()), tokenizer.eos_token_id
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rated |= kind is not Template
    if name == "compact":
        # An empty title, which no history has, marks where candidates begin and where they end.
        edge = [eos] if candidates or kind is not Template else []
        return kind(plain, eos, [Frame(bos or [eos], edge, edge, edge)], [eos], rated, seed, items)
    if name not in ("instruct", "chat"):
        raise ValueError(f"Found template '{name}'. Choose one of compact, instruct, chat.")
    # The placeholder is the user's text, which is data: special tokens are read only in the frame around it.
    around = ("", "\n") if name == "instruct" else _chat_frame(tokenizer)
    start, end = (tokenizer(text, add_special_tokens=False)["input_ids"] if text else [] for text in around)
    while bos and start[:1] == bos:
        start = start[1:]

    def encode(texts: Iterable[str]) -> list[list[int]]:
        return [found.ids for found in plain.encode_batch(list(texts), add_special_tokens=False)]

    (separator,) = encode(["\n"])
    frames = []
    plainly = CHOICES if candidates else ((INSTRUCTION, "", QUESTION),)
    for wording in [BY_LIKING[ask]] if ask in BY_LIKING else plainly:
        first, *second, middle, last = encode(wording)
        frames.append(Frame(bos + start + first, middle, last + end, *second))
    return kind(plain, eos, frames, separator, rated, seed, items)


def _chat_frame(tokenizer: Any) -> tuple[str, str]:
    """Return the text of the chat template before and after the user's content."""
    if not tokenizer.chat_template:
        raise ValueError("The tokenizer has no chat template, which template 'chat' needs. Add --template instruct.")
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": _PLACEHOLDER}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
            date_string=_TODAY.strftime("%d %b %Y"),
            strftime_now=_TODAY.strftime,
        )
    except Exception as error:  # a template is a program of its author's, and may raise anything
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The tokenizer's chat template fails on one message of a user: {why.rstrip('.')}. Add --template instruct."
        ) from error
    parts = rendered.split(_PLACEHOLDER)
    if len(parts) != 2:
        raise ValueError(f"The chat template writes the user's text {len(parts) - 1} times. Add --template instruct.")
    return parts[0], parts[1]
