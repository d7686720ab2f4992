"""Top-k lists for histories, by the constrained beams of a policy."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayrec.models.card import catalogue_hash
from rayrec.recommend import places
from rayrec.recommend.catalogues import read_catalogue
from rayrec.recommend.lists import LISTS, Entry, Explore
from rayrec.seeds import seed_of

#: Prompts of one call of the beam search.
_PART = 64
#: Texts beside the catalogue's titles whose tokens are kept: histories may hold any text.
_TEXTS = 100_000


class Recommender:
    """A policy and a catalogue, held in memory; make it with :meth:`open`."""

    def __init__(
        self,
        model: Any,
        template: Any,
        catalogue: Any,
        policy: str,
        history: int,
        width: int,
        normalise: Any = "vocabulary",
        max_length: int | None = None,
        max_new: int | None = None,
    ):
        from rayrec.decoding import Trie

        self.model, self.template, self.catalogue = model, template, catalogue
        self.policy, self.history, self.width = policy, history, width
        self.normalise, self.max_length, self.max_new = normalise, max_length, max_new
        self._answers = [template.answer_ids(title) for title in catalogue.titles]
        self._trie = Trie.build(self._answers)

    @classmethod
    def open(
        cls,
        policy: str | Path,
        catalogue: str | Path | None = None,
        *,
        template: str = "auto",
        device: str = "auto",
        dtype: str = "",
        history: int | None = None,
        width: int = 10,
        normalise: str = "",
    ) -> Recommender:
        """Open a policy.

        Args:
            policy: a run's folder (its best policy on validation rows), a policy's folder in a run, or a Hugging Face
                folder or hub id.
            catalogue: Parquet or CSV with a column `title`, and `popularity` if there is any; by default the run's own.
            template: prompt form, ``history``: titles of a prompt, which a policy of rayrec knows itself, else 10;
                ``width``: of the beams, ``dtype``: precision; in a run those of the run.
            device: `cpu`, `cuda`, or `auto`.
            normalise: `vocabulary`, or `catalogue` for probabilities over the catalogue's titles alone, which takes
                less time; by default the run's, else `vocabulary`.

        Raises:
            ValueError: the policy or the catalogue cannot be opened, the policy chooses from candidates, it was tuned
                with another template or history than is given, or it is of no run and check_base refuses it.
        """
        import torch

        from rayrec.decoding.exact import check_base
        from rayrec.models.folder import reach
        from rayrec.models.policy import load_policy

        place = places.find(str(policy))
        items, form = _checked(place, catalogue, template, history)
        titles = int(place.asked["history"] if place.asked else history or 10)
        if place.settings:
            width, dtype = place.settings["evaluate"]["beam_width"], dtype or place.settings["train"]["dtype"]
            normalise = normalise or place.settings["evaluate"].get("normalise", "")
        if normalise not in ("", "vocabulary", "catalogue"):
            raise ValueError(f"Found normalise '{normalise}'. Choose one of vocabulary, catalogue.")
        if place.run is None and not _is_adapter(place):  # a run has checked its own
            check_base(place.model)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        lm = load_policy(place.model, dtype or "float32", device)
        lm = lm.merge_and_unload() if _is_adapter(place) else lm
        sizes = [(place.asked or {}).get(name) for name in ("max_length", "max_new_tokens")]
        sizes[0] = sizes[0] or reach(lm.config)[0]
        return cls(lm.eval(), form, items, place.name, titles, width, normalise or "vocabulary", *sizes)

    @staticmethod
    def check(policy: str | Path, catalogue: str | Path | None = None, *, template: str = "auto") -> None:
        """Raise what :meth:`open` would raise, without reading a weight."""
        _checked(places.find(str(policy)), catalogue, template)

    def with_catalogue(self, catalogue: str | Path) -> Recommender:
        """Return a recommender of the same policy in memory for the titles of a file. ValueError: as :meth:`open`."""
        items = read_catalogue(catalogue)
        more = self.policy, self.history, self.width, self.normalise, self.max_length, self.max_new
        return Recommender(self.model, copy.copy(self.template), items, *more)

    @cached_property
    def version(self) -> str:
        """Hash of the catalogue's titles, 12 hexadecimal digits."""
        return catalogue_hash(self.catalogue.titles)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_history: bool = True,
        allow: Collection[str] | None = None,
        exclude: Collection[str] = (),
        explore: Explore = "none",
        seeds: int | Sequence[int] = 0,
    ) -> pa.Table:
        """Return the best ``k`` titles for every history (oldest title first), as :data:`LISTS`.

        A list is shorter where fewer titles are allowed. Of a history that makes a prompt and an answer longer than the
        policy's --max-length the oldest titles are not read.

        Args:
            exclude_history: leave the history's own titles out of its list.
            allow: titles that lists may hold, by default all of the catalogue.
            exclude: titles that lists may not hold.
            explore: `gumbel` draws the titles without replacement, by their probabilities over those that the list may
                hold, and ranks them as they were drawn; weights 1/``inclusion`` make sums over a list unbiased.
            seeds: of the draws, one for each history; or one number, from which and from the row they follow.

        Raises:
            ValueError: k below 1, titles that the catalogue does not have, another number of seeds, or a history whose
                last title alone is too long.
        """
        if k < 1:
            raise ValueError(f"Found k = {k}, wanted at least 1.")
        allowed_I = self.allowed(allow, exclude)
        if explore not in ("none", "gumbel"):
            raise ValueError(f"Found explore '{explore}'. Choose one of none, gumbel.")
        own = [seed_of(seeds, row) for row in range(len(histories))] if isinstance(seeds, int) else [*seeds]
        if len(own) != len(histories):
            raise ValueError(f"Found {len(own)} seeds for {len(histories)} histories. Give one for each, or a number.")
        columns: dict[str, list] = {name: [] for name in LISTS.names}
        drawn = own if explore == "gumbel" else None
        for row, found in enumerate(self._lists(histories, k, exclude_history, allowed_I, drawn)):
            for rank, (item, logprob, *draw) in enumerate(found, 1):
                values = row, rank, item, self.catalogue.titles[item], logprob, logprob is None, *draw
                for name, value in zip(LISTS.names, values, strict=True):
                    columns[name].append(value)
        return pa.table(columns, schema=LISTS)

    def score(self, histories: Sequence[Sequence[str]], titles: Sequence[str]) -> list[list[float]]:
        """Return log P(title + EOS | history) in nats of every title after every history.

        Over the catalogue that of a text which is no title is -inf.
        """
        from rayrec.decoding import score_answers, titles_of
        from rayrec.models.logprobs import PackedLM

        if not titles:
            return [[] for _ in histories]
        answers, items = [self.template.answer_ids(title) for title in titles], titles_of(self._answers)
        asked = [(prompt, answers) for prompt in self._prompts(histories)]
        found = score_answers(PackedLM(self.model), asked, self._trie, items, self.normalise)
        return [[logprob for logprob, _ in one] for one in found]

    def refusals(self, histories: Sequence[Sequence[str]]) -> list[str | None]:
        """Return why each history cannot be asked; None where it can."""
        room = self._room
        made = self._trimmed(histories)
        return [None if room is None or len(ids) <= room else self._too_long(len(ids), room) for ids in made]

    def _prompts(self, histories: Sequence[Sequence[str]]) -> list[list[int]]:
        made, room = self._trimmed(histories), self._room
        if room is not None and (most := max(map(len, made), default=0)) > room:
            raise ValueError(self._too_long(most, room))
        return made

    def _trimmed(self, histories: Sequence[Sequence[str]]) -> list[list[int]]:
        """The prompts of histories, without their oldest titles where a prompt would be too long."""
        from rayrec.prompts import trim

        rows = [{"history": list(history)[-self.history :]} for history in histories]
        room, schema = self._room, pa.schema([("history", pa.list_(pa.string()))])
        if room is None:
            return [self.template.prompt_ids(row["history"]) for row in rows]
        return trim(rows, schema, [room] * len(rows), self.template)

    @cached_property
    def _room(self) -> int | None:
        """Tokens of a prompt beside the longest answer, for which at most a half is kept unless the policy sets it."""
        if self.max_length is None:
            return None
        longest = min(max(map(len, self._answers)), self.max_length // 2)
        return self.max_length - max(longest, self.max_new or 0)

    def _too_long(self, length: int, room: int) -> str:
        return (
            f"The last title of a history makes a prompt of {length} tokens; the policy reads {self.max_length} with "
            f"the answer, which leaves {room}. Shorten the title."
        )

    def allowed(self, allow: Collection[str] | None, exclude: Collection[str]) -> Any:
        """Return which items lists may hold, bool [I]; ValueError: titles that the catalogue does not have."""
        import torch

        if unknown := [title for title in (*(allow or ()), *exclude) if title not in self.catalogue.index]:
            raise ValueError(
                f"{len(unknown)} titles to allow or exclude are not in the catalogue, the first is {unknown[0]!r}. "
                "Take titles of the catalogue."
            )
        allowed_I = torch.full((len(self.catalogue),), allow is None)
        allowed_I[self.items(allow or ())] = True
        allowed_I[self.items(exclude)] = False
        return allowed_I

    def items(self, titles: Iterable[str]) -> list[int]:
        """Return the numbers of those titles that the catalogue has."""
        return [self.catalogue.index[title] for title in titles if title in self.catalogue.index]

    def _lists(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        exclude_history: bool,
        allowed_I: Any,
        seeds: Sequence[int] | None,
    ) -> Iterator[list[Entry]]:
        """Yield every list; with ``seeds`` they are drawn."""
        for start in range(0, len(histories), _PART):
            some = histories[start : start + _PART]
            allowed_PI = allowed_I.repeat(len(some), 1)
            for row, history in enumerate(some) if exclude_history else ():
                allowed_PI[row, self.items(history)] = False
            own = seeds and seeds[start : start + _PART]
            yield from self.ranked(some, k, allowed_PI) if own is None else self.drawn(some, k, allowed_PI, own)

    def ranked(self, histories: Sequence[Sequence[str]], k: int, allowed_PI: Any) -> list[list[Entry]]:
        """Return the best ``k`` items of each history, the most popular ones where it is empty.

        ``allowed_PI`` (bool, [histories, I]) names the items that each list may hold. The beams are as wide as the
        policy's, or ``k`` where that is more, so up to that width a list does not depend on k.
        """
        from rayrec.decoding import beam_search

        asked, prompts = self._asked(histories)
        limits, width = None if bool(allowed_PI.all()) else allowed_PI[asked], max(k, self.width)
        how: dict[str, Any] = {"return_best": k, "allowed_PI": limits, "normalise": self.normalise}
        found = beam_search(self.model, prompts, self._trie, width, **how) if asked else []
        made = {row: [Entry(*one) for one in some] for row, some in zip(asked, found, strict=True)}
        return self._whole(made, k, allowed_PI)

    def drawn(
        self, histories: Sequence[Sequence[str]], k: int, allowed_PI: Any, seeds: Sequence[int]
    ) -> list[list[Entry]]:
        """Return ``k`` items of each history, drawn by their probability with a seed of each.

        ``allowed_PI`` and empty histories are as in :meth:`ranked`.
        """
        from rayrec.decoding import sample_titles

        asked, prompts = self._asked(histories)
        limits, own = None if bool(allowed_PI.all()) else allowed_PI[asked], [seeds[row] for row in asked]
        found = sample_titles(self.model, prompts, self._trie, k, own, allowed_PI=limits) if asked else []
        made = {}
        for row, sample in zip(asked, found, strict=True):
            threshold = sample.threshold if math.isfinite(sample.threshold) else None
            made[row] = [Entry(*title, sample.inclusion(title), threshold) for title in sample.titles]
        return self._whole(made, k, allowed_PI)

    def _asked(self, histories: Sequence[Sequence[str]]) -> tuple[list[int], list[list[int]]]:
        """The rows that have a history, and their prompts."""
        if self.template.known > len(self.catalogue) + _TEXTS:
            self.template.forget()
        asked = [row for row, history in enumerate(histories) if len(history)]
        return asked, self._prompts([histories[row] for row in asked])

    def _whole(self, made: dict[int, list[Entry]], k: int, allowed_PI: Any) -> list[list[Entry]]:
        """The lists of all rows; those that were not ``made`` are of popular titles."""
        return [
            made[row] if row in made else [Entry(item, None) for item in self._popular(allowed_PI[row], k)]
            for row in range(len(allowed_PI))
        ]

    def _popular(self, allowed_I: Any, k: int) -> list[int]:
        return self._by_popularity[allowed_I[self._by_popularity]][:k].tolist()

    @cached_property
    def _by_popularity(self) -> Any:
        """All items, the most popular first."""
        import torch

        return torch.from_numpy((-self.catalogue.popularity).argsort(kind="stable"))


def _is_adapter(place: places.Place) -> bool:
    return (Path(place.model) / "adapter_config.json").exists()


def _checked(
    place: places.Place, path: str | Path | None, template: str, history: int | None = None
) -> tuple[Any, Any]:
    """The catalogue and the prompt form of a policy that can answer histories of titles."""
    import pyarrow.parquet as pq

    from rayrec.data.catalogue import Catalogue
    from rayrec.models.policy import check_model, load_tokenizer
    from rayrec.prompts import make_template, resolve_template

    if asked := place.asked:
        plain = asked["protocol"] == "open" and asked["ask"] == "title"
        if not plain or asked["ratings"] or asked["item_vectors"]:
            raise ValueError(
                f"{place.name}: found a policy that chooses from candidates, reads ratings or item vectors; wanted one "
                "that answers a history of titles. Tune one with the default --protocol, without --ratings."
            )
        for name, given in (("template", template), ("history", history)):
            if given not in (None, "auto", asked[name]):
                raise ValueError(
                    f"{name} {given}: {place.name} was tuned with {name} {asked[name]} and knows no other prompt. "
                    "Leave it out."
                )
        template = asked["template"]
    if not _is_adapter(place):
        check_model(place.model)
    tokenizer = load_tokenizer(place.model)
    form = make_template(resolve_template(template, place.model, tokenizer), tokenizer)
    if path is not None:
        return read_catalogue(path), form
    if place.run is None:
        raise ValueError(
            f"{place.name}: a policy outside of a run has no catalogue. Name a file of titles with --catalogue."
        )
    return Catalogue.from_table(pq.read_table(place.run / "catalogue.parquet")), form
