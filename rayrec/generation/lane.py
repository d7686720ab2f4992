"""The generation lane: negatives, evaluations and the popularity baseline, beside the training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec.config import ALPHAS
from rayrec.data import preferences, schema
from rayrec.data.ahead import Ahead
from rayrec.data.candidates import CANDIDATES, Also
from rayrec.data.mapped import SLICE, each, mapped, slices, take
from rayrec.data.touched import Touched
from rayrec.generation.outputs import Outputs, candidates, prediction_table
from rayrec.grounding import Embedder, ground
from rayrec.grounding.choice import chosen_lists
from rayrec.lanes import BASE, Lane, Planned, Policy, Shared
from rayrec.metrics import BEST, evaluate, evaluate_splits
from rayrec.models import card
from rayrec.models.popular import popular_choices, popular_lists
from rayrec.negatives import NEGATIVES, Sampler, mixture
from rayrec.negatives.draw import Draw
from rayrec.negatives.scored import unscored, with_scores
from rayrec.negatives.statistics import Statistics
from rayrec.report import doubts
from rayrec.runs import former
from rayrec.runs.manifest import read_json

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue
    from rayrec.generation.engine import Mode

#: Rejected answers, their rows, and what the policy wrote for these.
Finished = tuple[pa.Table, pa.Table, pa.Table | None]


class GenerateLane(Lane):
    """Negatives and evaluations. A phase starts when its policy is finished; negatives have priority in the pool."""

    def __init__(self, shared: Shared, pool: Callable[[], Any], embedder: Embedder):
        super().__init__("generators", shared, threads=32)
        self.embedder, self._outputs = embedder, Outputs(shared, pool)

    def negatives(self, policy: Future | Policy, rows: pa.Table, t: int) -> Future:
        """Make the rejected answers of iteration ``t`` from π_θt, the policy at its start.

        The future holds tables of them (schema.REJECTED), from one file for each sampler.
        """
        train, name = self.shared.config.train, f"{t:02d}/negatives"
        catalogue, seed = self.shared.data.catalogue, self.shared.config.data.seed
        shares = mixture.parse(train.negatives)
        needs = {need for kind in shares for need in NEGATIVES[kind].needs}
        parts = self._outputs.parts_of(rows) * (1 + train.score_negatives)
        planned = Planned(name, "negatives", len(rows), parts, "parts")

        def make(folder: Path, facts: dict, current: Policy) -> dict:
            unique = preferences.distinct(rows)
            draw = Draw(
                train.num_negatives,
                seed,
                t,
                current.version,
                train.equal_target,
                embedder=self.embedder if train.ground else None,
                touched=self.touched if "touched" in needs else {},
                later=self.later if "later" in needs else None,
                similar=self.embedder if "embedder" in needs else None,
            )

            made = {kind: Statistics(catalogue, draw.k) for kind in (*shares, *["mixture"] * (len(shares) > 1))}
            for kind, numbers in mixture.assign(unique, shares, seed, t).items():
                part = take(unique, numbers) if len(shares) > 1 else unique
                sampler = NEGATIVES[kind]
                outputs = self._asked(f"{name}/{kind}", current, part, sampler, draw)
                with pq.ParquetWriter(folder / f"{kind}.parquet", schema.REJECTED) as file:
                    for number, one in enumerate(_finished(part, outputs, sampler, catalogue, draw)):
                        if train.score_negatives:
                            one = self._scored_too(f"{name}/{kind}-{number}", current, one)
                        file.write_table(preferences.with_numbers(one[0], one[1]))
                        for counted in {kind, "mixture"} & made.keys():
                            made[counted].add(*one)
            record = {"kind": "negatives", "phase": name, "iteration": t}
            return {"records": [record | {"sampler": kind} | one.result() for kind, one in made.items()]}

        return self.phase(planned, make, _rejected, policy)

    @cached_property
    def touched(self) -> Touched:
        """The titles that each user touched in the training split."""
        return Touched(self.shared.data.train)

    @cached_property
    def later(self) -> Also | None:
        """The titles that came next, if targets are the best of them and prompts list none (RecPO)."""
        lists = self._chooses or self.shared.config.train.target == "next"
        return None if lists else Ahead(self.shared.data.train).titles

    def _asked(self, name: str, policy: Policy, rows: pa.Table, sampler: Sampler, draw: Draw) -> pa.Table | None:
        """The policy's answers that a sampler needs: texts of its own, or log-probabilities of given titles."""
        if sampler.decode is None:
            return None
        catalogue, lists = self.shared.data.catalogue, sampler.choices
        choices = None if lists is None else lambda some: lists(some, catalogue, draw)
        return self._outputs.ask(name, policy, rows, sampler.decode, sampler.answers(draw.k), choices, urgent=True)

    def _scored_too(self, name: str, policy: Policy, finished: Finished) -> Finished:
        """Add log π of the titles that the policy did not write (``--score-negatives``)."""
        negatives, rows, written = finished
        titles = unscored(negatives)
        if not titles:
            return finished
        among = pc.SetLookupOptions(pa.array(titles))
        asked = rows.filter(pc.call_function("is_in", [rows["example_id"]], among))

        def choices(some: pa.Table) -> list[list[str]]:
            return [titles[example_id] for example_id in some["example_id"].to_pylist()]

        most = max(map(len, titles.values()))
        outputs = self._outputs.ask(name, policy, asked, "score", most, choices, urgent=True)
        return with_scores(negatives, outputs), rows, written

    def evaluate(self, policy: Future | Policy, oracle: Future | None, t: int) -> Future:
        """Make top-k lists of the validation and test rows by every --decode; the future holds the metrics records."""
        data, settings, name = self.shared.data, self.shared.config.evaluate, f"{t:02d}/evaluate"
        data_config = self.shared.config.data
        examples, model = pa.concat_tables(data.evaluated.values()), self.shared.config.model
        reweighted = self.shared.config.train.reweight != "none"
        is_bigrec = not (reweighted or model.item_vectors or data_config.ask != "title")

        # Nothing is trained beside the last one, in whatever order phases are done.
        threads = self.shared.last_threads if t == self.shared.config.train.iterations else 0

        total = self._outputs.parts_of(examples) * len(settings.decode)
        if "d3" in settings.decode and settings.d3_alpha is None:
            total += self._outputs.parts_of(data.valid) * len(ALPHAS)
        if data_config.ask == "liking":  # one prompt for each candidate
            total *= CANDIDATES
        planned = Planned(name, "evaluate", len(examples), total, "parts")

        def make(folder: Path, facts: dict, current: Policy, sasrec: Path | None) -> dict:
            def predict(rows: pa.Table, decode: Mode, alpha: float | None) -> pa.Table:
                width = 1 if decode == "greedy" else settings.beam_width
                guide = None if alpha is None else (str(sasrec), alpha)
                kind = decode if alpha is None else f"{decode}-{alpha:g}"
                if rows is examples and (kept := former.answers(folder, decode, rows)) is not None:
                    return self._predictions(kept, rows, decode)
                if data_config.ask == "liking":
                    liked = self._outputs.likings(f"{name}/{kind}", current, rows, threads)
                    return self._predictions(liked, rows, decode)
                choices, searched = candidates if decode == "score" else None, decode in ("beams", "d3")
                outputs = self._outputs.ask(
                    f"{name}/{kind}", current, rows, decode, width, choices, False, guide, threads, searched
                )
                return self._predictions(outputs, rows, decode)

            tables, records, answers = [], [], []
            for decode in cast("tuple[Mode, ...]", settings.decode):  # `auto` is resolved
                alpha = settings.d3_alpha
                if decode == "d3" and alpha is None:
                    alpha = max(ALPHAS, key=lambda one: self._ndcg(predict(data.valid, "d3", one), data.valid))
                tables.append(predict(examples, decode, alpha if decode == "d3" else None))
                record = {"kind": "evaluation", "phase": name, "iteration": t, "policy": current.version}
                if current.version == BASE:
                    tuned = card.asked(model.model)
                    record |= {"model": f"tuned, {tuned['policy']}"} if tuned else {}
                elif not (t or is_bigrec):
                    record["model"] = "first SFT"
                grounded = decode == "greedy" and not self._chooses
                record |= {"decode": decode, "embedder": settings.embedder if grounded else None}
                record |= {"alpha": alpha} if decode == "d3" else {}
                of_titles = settings.normalise != "vocabulary" and decode in ("beams", "d3", "score")
                record |= {"normalise": settings.normalise} if of_titles else {}
                records += self._scored(record, tables[-1])
                if decode in doubts.WRITTEN:
                    titles = data.catalogue.titles
                    answers.append(doubts.count_answers(name, decode, tables[-1], titles, self._chooses))
            named = pa.concat_tables(data.catalogue.identified(table, examples) for table in tables)
            pq.write_table(named, folder / "predictions.parquet", row_group_size=SLICE)
            return {"records": records, "answers": answers}

        return self.phase(planned, make, _records, policy, oracle)

    def _ndcg(self, predictions: pa.Table, examples: pa.Table) -> float:
        top_k = self.shared.config.evaluate.top_k
        return evaluate(predictions, examples, self.shared.data.catalogue, top_k)[BEST.key(max(top_k))]

    def baseline(self) -> Future:
        """Rank the same rows by popularity; the future holds the metrics records."""
        data, k = self.shared.data, max(self.shared.config.evaluate.top_k)
        examples = pa.concat_tables(data.evaluated.values())

        def write(folder: Path, facts: dict) -> dict:
            choose = popular_choices if self._chooses else popular_lists

            def listed(some: pa.Table) -> pa.Table:
                none: list[list] = [[]] * len(some)
                return prediction_table(some, "popular", "popular", none, none, choose(some, data.catalogue, k))

            predictions = each(examples, listed)
            named = data.catalogue.identified(predictions, examples)
            pq.write_table(named, folder / "predictions.parquet", row_group_size=SLICE)
            record = {"kind": "baseline", "model": "Popular", "phase": "00/baseline", "iteration": 0}
            return {"records": self._scored(record, predictions)}

        return self.phase(Planned("00/baseline", "baseline", len(examples), 1, "lists", answers=0), write, _records)

    def _scored(self, record: dict, predictions: pa.Table) -> list[dict]:
        """Return the record with the metrics of each split, test first."""
        data, top_k = self.shared.data, self.shared.config.evaluate.top_k
        found = evaluate_splits(predictions, data.evaluated, data.catalogue, top_k, self._chooses)
        return [record | one | ({"protocol": "candidates"} if self._chooses else {}) for one in found]

    @property
    def _chooses(self) -> bool:
        """Whether prompts list candidates."""
        return self.shared.config.data.protocol == "candidates"

    def _predictions(self, outputs: pa.Table, examples: pa.Table, decode: str) -> pa.Table:
        """Add the top-k lists: greedy text is grounded; of beams those that are titles are taken.

        Among candidates, greedy text is the one title that it names, and scored titles are ranked.
        """
        settings, catalogue = self.shared.config.evaluate, self.shared.data.catalogue
        k = max(settings.top_k)

        def listed(some: pa.Table, asked: pa.Table) -> pa.Table:
            texts = some["texts"].to_pylist()
            if self._chooses:
                lists = [[title for title in one if title in catalogue.index][:k] for one in chosen_lists(some, asked)]
            elif decode == "greedy":
                first = [one[0] if one else "" for one in texts]
                lists = ground(first, catalogue, self.embedder, k, settings.popularity_gamma)
            else:
                lists = [[t for t in dict.fromkeys(one) if t in catalogue.index][:k] for one in texts]
            at, field = outputs.column_names.index("titles"), schema.PREDICTIONS.field("titles")
            return some.set_column(at, field, pa.array(lists, field.type))

        return mapped(map(listed, slices(outputs), slices(examples)), schema.PREDICTIONS)


def _records(folder: Path) -> list[dict]:
    return read_json(folder / "metrics.json")["records"]


def _finished(
    rows: pa.Table, outputs: pa.Table | None, sampler: Sampler, catalogue: Catalogue, draw: Draw
) -> Iterator[Finished]:
    """The rejected answers of ``rows``, a slice at a time."""
    written = itertools.repeat(None) if outputs is None else slices(outputs)
    for some, own in zip(slices(rows), written, strict=False):
        yield sampler.finish(some, own, catalogue, draw), some, None if sampler.decode == "score" else own


def _rejected(folder: Path) -> Iterator[pa.Table]:
    """Tables (schema.REJECTED) of the files of a finished phase."""
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(SLICE):
                yield schema.check(pa.Table.from_batches([batch]), schema.REJECTED, str(path))
