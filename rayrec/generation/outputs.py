"""The answers of a policy to many rows: requested from the pool part by part, kept meanwhile, and put in order."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayrec.data import content_hash, schema
from rayrec.data.likings import NO, YES, one_by_one
from rayrec.data.mapped import each, mapped, slices
from rayrec.deciding import deciding
from rayrec.generation.engine import Answer, Guide, Part
from rayrec.generation.parts import KeptParts
from rayrec.lanes import BASE, Policy, Shared
from rayrec.models.sequential import item_numbers
from rayrec.runs import cache
from rayrec.runs.manifest import MANIFEST, METRICS, read_json
from rayrec.seeds import seed_of

if TYPE_CHECKING:
    from rayrec.generation.engine import Mode


class Outputs:
    """Requests answers from the pool, and counts the finished parts of each phase."""

    def __init__(self, shared: Shared, pool: Callable[[], Any]):
        self.shared, self._pool, self._done = shared, pool, Counter[str]()

    @cached_property
    def _titles(self) -> dict[tuple[int, ...], str]:
        """The title that tokens stand for: their text is another one where the tokenizer rewrites it."""
        return {tuple(self.shared.template.answer_ids(title)): title for title in self.shared.data.catalogue.titles}

    def parts_of(self, rows: pa.Table) -> int:
        """Return the number of parts of some rows."""
        return -(-len(rows) // self.shared.config.evaluate.part)

    def ask(
        self,
        name: str,
        policy: Policy,
        rows: pa.Table,
        decode: Mode,
        n: int,
        choices: Callable[[pa.Table], list[list[str]]] | None = None,
        urgent: bool = False,
        guide: tuple[str, float] | None = None,
        threads: int = 0,
        targets: bool = False,
    ) -> pa.Table:
        """Return the policy's answers to every row, or its scores of ``choices``: schema.PREDICTIONS without titles.

        ``guide``: folder of a SASRec, and the weight of the policy beside it (D3). ``threads`` of an engine on a CPU:
        0 for those of a process beside others. ``targets``: beams come with the scores of the rows' targets.
        """
        template, size, catalogue = self.shared.template, self.shared.config.evaluate.part, self.shared.data.catalogue
        phase = "/".join(name.split("/")[:2])
        kept, total = (
            self._kept(phase, name, policy, rows, [decode, n, guide and guide[1], targets]),
            self.parts_of(rows),
        )
        made = kept.load()
        open_ = [i for i in range(total) if i not in made]
        if made:
            self._count(phase, len(made))
        asked: dict[int, list[list[str]]] = {}
        over_titles = self.shared.config.evaluate.normalise == "catalogue"
        metrics = policy.folder.parent / METRICS
        stated = read_json(metrics).get("proof") if policy.version != BASE and metrics.exists() else None

        def part_of(i: int) -> Part:
            some = rows.slice(i * size, size)
            asked[i] = choices(some) if choices else []
            return Part(
                name,
                i,
                policy.version,
                str(policy.folder),
                template.prompts(some),
                decode,
                n,
                seed_of(self.shared.config.data.seed, name, i),
                [[template.scored_ids(title) for title in one] for one in asked[i]] if choices else None,
                Guide(*guide, item_numbers(some["history"].to_pylist(), catalogue)) if guide else None,
                threads,
                stated,
                [template.answer_ids(title) for title in some["target"].to_pylist()] if targets else None,
            )

        def answered() -> Iterator[tuple[int, pa.Table]]:
            for j, answers in self._pool().ask(len(open_), lambda j: part_of(open_[j]), urgent):
                i, given = open_[j], asked.pop(open_[j])
                last = [one.pop().logprob for one in answers] if targets else [math.nan] * len(answers)
                texts, ids = given, None
                if not choices:
                    ids = [[template.ended(answer.ids) for answer in one] for one in answers]
                    texts = [
                        [self._titles.get(tuple(own), answer.text) for own, answer in zip(some, one, strict=True)]
                        for some, one in zip(ids, answers, strict=True)
                    ]
                logprobs = [[answer.logprob for answer in one] for one in answers]
                some = rows.slice(i * size, size)
                table = prediction_table(some, policy.version, decode, texts, logprobs, [[]] * len(texts), ids)
                table = schema.with_column(table, "kept", [_kept(one, over_titles) for one in answers])
                table = schema.with_column(table, "target_logprob", [None if math.isnan(x) else x for x in last])
                kept.add(i, table)
                self._count(phase, 1)
                yield i, table

        return mapped(_in_order(total, made, answered()), schema.PREDICTIONS)

    def _kept(self, phase: str, name: str, policy: Policy, rows: pa.Table, asked: list[Any]) -> KeptParts:
        """The kept parts of a request, under the key of all that decides their bytes."""
        run, manifest, config = self.shared.run, policy.folder.parent / MANIFEST, self.shared.config
        key = {"request": name, "asked": asked, "settings": deciding(config)}
        key |= {"policy": manifest.read_text() if manifest.exists() else policy.version}
        key |= {"rows": content_hash(rows.select(["example_id"]))}
        return KeptParts(run.folder(phase), cache.key_hash(key), run.storage, config.placement.checkpoint_seconds)

    def likings(self, name: str, policy: Policy, rows: pa.Table, threads: int = 0) -> pa.Table:
        """Return every candidate with log p(Yes) − log p(No), each in a prompt of its own (TALLRec)."""
        asked = one_by_one(rows)
        outputs = self.ask(name, policy, asked, "score", 2, lambda some: [[YES, NO]] * len(some), threads=threads)
        odds = (yes - no for some in slices(outputs) for yes, no in some["logprobs"].to_pylist())

        def joined(some: pa.Table) -> pa.Table:
            texts = candidates(some)
            logprobs = [[next(odds) for _ in one] for one in texts]
            return prediction_table(some, policy.version, "score", texts, logprobs, [[]] * len(texts))

        return each(rows, joined)

    def _count(self, name: str, parts: int) -> None:
        """Add to the finished parts of a phase, whichever request they belong to."""
        self._done[name] += parts
        self.shared.run.trace.progress(name, parts=self._done[name])
        self.shared.progress.update(name, self._done[name])
        self.shared.heard(name, self._done[name])


def _kept(answers: Sequence[Answer], over_titles: bool) -> float | None:
    """Return Σ π / Σ π_C over titles, for the probabilities π over the vocabulary and π_C over the catalogue.

    Over all titles it is the probability that a policy leaves to titles. ``over_titles``: the log-probabilities of the
    answers are over the catalogue. None without measured titles.
    """
    known = [(one.logprob - (0 if over_titles else one.kept), one.kept) for one in answers if one.kept is not None]
    if not known:
        return None
    most = max(logprob for logprob, _ in known)
    weights = [math.exp(logprob - most) for logprob, _ in known]
    shares = [math.exp(kept) for _, kept in known]
    return sum(w * share for w, share in zip(weights, shares, strict=True)) / sum(weights)


def candidates(rows: pa.Table) -> list[list[str]]:
    """Return the titles that each prompt lists."""
    return rows["candidates"].to_pylist()


def _in_order(total: int, made: Mapping[int, pa.Table], answered: Iterator[tuple[int, pa.Table]]) -> Iterator[pa.Table]:
    """Yield the parts 0 to ``total``: those that are ``made``, and those that are answered in any order."""
    waiting: dict[int, pa.Table] = {}
    for i in range(total):
        if i in made:
            yield made[i]
            continue
        while i not in waiting:
            number, table = next(answered)
            waiting[number] = table
        yield waiting.pop(i)
    deque(answered, maxlen=0)  # lets the pool's generator end, which forgets the request


def prediction_table(
    examples: pa.Table,
    policy: str,
    decode: str,
    texts: Sequence,
    logprobs: Sequence,
    titles: Sequence,
    ids: Sequence | None = None,
) -> pa.Table:
    """Return rows of schema.PREDICTIONS for some examples."""
    kinds, count = schema.PREDICTIONS, len(examples)
    columns = {
        "example_id": examples["example_id"],
        "policy": pa.repeat(policy, count),
        "decode": pa.repeat(decode, count),
        "target": examples["target"],
        "texts": pa.array(texts, kinds.field("texts").type),
        "ids": pa.array(ids or [None] * count, kinds.field("ids").type),
        "logprobs": pa.array(logprobs, kinds.field("logprobs").type),
        "titles": pa.array(titles, kinds.field("titles").type),
        "kept": pa.nulls(count, kinds.field("kept").type),
        "target_logprob": pa.nulls(count, kinds.field("target_logprob").type),
    }
    return pa.Table.from_arrays([columns[name] for name in kinds.names], schema=kinds)
