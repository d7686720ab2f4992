"""Top-k lists for histories, by the constrained beams of a policy."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayrec.models.card import catalogue_hash
from rayrec.recommend import places

#: One list element per row. ``row`` is the place of the history, ``logprob`` log P(title + EOS | prompt) in nats, null
#: in the ``fallback`` for an empty history: the most popular titles.
LISTS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("logprob", pa.float32()),
        pa.field("fallback", pa.bool_(), nullable=False),
    ]
)
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
    ):
        from rayrec.decoding import Trie

        self.model, self.template, self.catalogue = model, template, catalogue
        self.policy, self.history, self.width = policy, history, width
        self.normalise = normalise
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
            catalogue: Parquet or CSV with a column `title`, `genres` and `popularity` if there are any; by default the
                run's own.
            template: prompt form, ``history``: titles of a prompt, which a policy of rayrec knows itself, else 10;
                ``width``: of the beams, ``dtype``: precision; in a run those of the run.
            device: `cpu`, `cuda`, or `auto`.
            normalise: `vocabulary`, or `catalogue` for probabilities over the catalogue's titles alone, which takes
                less time; by default the run's, else `vocabulary`.

        Raises:
            ValueError: the policy or the catalogue cannot be opened, the policy chooses from candidates, or it was
                tuned with another template or history than is given.
        """
        import torch

        from rayrec.models.policy import load_policy

        place = places.find(str(policy))
        items, form = _checked(place, catalogue, template, history)
        titles = int(place.asked["history"] if place.asked else history or 10)
        if place.settings:
            width, dtype = place.settings["evaluate"]["beam_width"], dtype or place.settings["train"]["dtype"]
            normalise = normalise or place.settings["evaluate"].get("normalise", "")
        if normalise not in ("", "vocabulary", "catalogue"):
            raise ValueError(f"Found normalise '{normalise}'. Choose one of vocabulary, catalogue.")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        lm = load_policy(place.model, dtype or "float32", device)
        lm = lm.merge_and_unload() if _is_adapter(place) else lm
        return cls(lm.eval(), form, items, place.name, titles, width, normalise or "vocabulary")

    @staticmethod
    def check(policy: str | Path, catalogue: str | Path | None = None, *, template: str = "auto") -> None:
        """Raise what :meth:`open` would raise, without reading a weight."""
        _checked(places.find(str(policy)), catalogue, template)

    def with_catalogue(self, catalogue: str | Path) -> Recommender:
        """Return a recommender of the same policy in memory for the titles of a file. ValueError: as :meth:`open`."""
        items = read_catalogue(catalogue)
        more = self.policy, self.history, self.width, self.normalise
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
    ) -> pa.Table:
        """Return the best ``k`` titles for every history (oldest title first), as :data:`LISTS`.

        A list is shorter where fewer titles are allowed.

        Args:
            exclude_history: leave the history's own titles out of its list.
            allow: titles that lists may hold, by default all of the catalogue.
            exclude: titles that lists may not hold.

        Raises:
            ValueError: k below 1, or titles that the catalogue does not have.
        """
        allowed_I = self._allowed(k, allow, exclude)
        columns: dict[str, list] = {name: [] for name in LISTS.names}
        for row, found in enumerate(self._lists(histories, k, exclude_history, allowed_I)):
            for rank, (item, logprob) in enumerate(found, 1):
                values = row, rank, item, self.catalogue.titles[item], logprob, logprob is None
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
        asked = [(self._prompt(history), answers) for history in histories]
        found = score_answers(PackedLM(self.model), asked, self._trie, items, self.normalise)
        return [[logprob for logprob, _ in one] for one in found]

    def _prompt(self, history: Sequence[str]) -> list[int]:
        return self.template.prompt_ids(list(history)[-self.history :])

    def _allowed(self, k: int, allow: Collection[str] | None, exclude: Collection[str]) -> Any:
        if k < 1:
            raise ValueError(f"Found k = {k}, wanted at least 1.")
        return self.allowed(allow, exclude)

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
        self, histories: Sequence[Sequence[str]], k: int, exclude_history: bool, allowed_I: Any
    ) -> Iterator[list[tuple[int, float | None]]]:
        """Yield the items of every list with their log-probabilities, None in a fallback."""
        for start in range(0, len(histories), _PART):
            some = histories[start : start + _PART]
            allowed_PI = allowed_I.repeat(len(some), 1)
            for row, history in enumerate(some) if exclude_history else ():
                allowed_PI[row, self.items(history)] = False
            yield from self.ranked(some, k, allowed_PI)

    def ranked(
        self, histories: Sequence[Sequence[str]], k: int, allowed_PI: Any
    ) -> list[list[tuple[int, float | None]]]:
        """Return the best ``k`` items of each history with their log-probabilities, None in a fallback.

        ``allowed_PI`` (bool, [histories, I]) names the items that each list may hold. The beams are as wide as the
        policy's, or ``k`` where that is more, so up to that width a list does not depend on k.
        """
        from rayrec.decoding import beam_search

        if self.template.known > len(self.catalogue) + _TEXTS:
            self.template.forget()
        asked = [row for row, history in enumerate(histories) if len(history)]
        prompts = [self._prompt(histories[row]) for row in asked]
        limits, width = None if bool(allowed_PI.all()) else allowed_PI[asked], max(k, self.width)
        how: dict[str, Any] = {"return_best": k, "allowed_PI": limits, "normalise": self.normalise}
        found = beam_search(self.model, prompts, self._trie, width, **how) if asked else []
        by_row: dict[int, list[tuple[int, float | None]]] = {row: [*one] for row, one in zip(asked, found, strict=True)}
        return [
            by_row[row] if row in by_row else [(item, None) for item in self._popular(allowed_PI[row], k)]
            for row in range(len(histories))
        ]

    def _popular(self, allowed_I: Any, k: int) -> list[int]:
        order = (-self.catalogue.popularity).argsort(kind="stable").tolist()
        return [item for item in order if allowed_I[item]][:k]


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


def read_catalogue(path: str | Path) -> Any:
    """Return the catalogue of a Parquet or CSV file; ValueError: it is missing, or has other columns or rows."""
    import numpy as np
    import polars as pl

    from rayrec.data.catalogue import Catalogue

    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"catalogue {path}: no such file. Name a Parquet or CSV file with a column `title`.")
    try:
        table = pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
        if "title" not in table.columns:
            raise ValueError(f"catalogue {path}: found columns {table.columns}, wanted `title`. Rename the column.")
        titles = table["title"].cast(pl.String).to_list()
        counts = np.zeros(len(titles), np.int64)
        if "popularity" in table.columns:
            counts = table["popularity"].cast(pl.Int64).fill_null(0).to_numpy()
    except pl.exceptions.PolarsError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"catalogue {path}: not readable ({why}). Write Parquet, or CSV in UTF-8, with texts in `title` and whole "
            "numbers in `popularity`."
        ) from error
    if None in titles or len(set(titles)) < len(titles):
        raise ValueError(f"catalogue {path}: a title is empty or comes twice. Remove that row.")
    return Catalogue.from_items(titles, [()] * len(titles)).with_training(counts, [])
