"""The generation lane: negatives, evaluations, the popularity baseline and the oracle, beside the training."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrec import checkpoint, shelf
from rayrec.data import content_hash, schema
from rayrec.data.candidates import CANDIDATES, Also
from rayrec.data.likings import NO, YES, one_by_one
from rayrec.data.mapped import SLICE, each, mapped, slices, take
from rayrec.data.met import Met
from rayrec.data.preferences import distinct
from rayrec.folders import MANIFEST, read_json
from rayrec.grounding import Embedder, ground
from rayrec.grounding.choice import chosen_lists
from rayrec.kept_parts import KeptParts
from rayrec.lanes import Lane, Policy, Shared
from rayrec.metrics import evaluate, evaluate_splits
from rayrec.models import sequential
from rayrec.models.popular import popular_choices, popular_lists
from rayrec.models.sequential import item_numbers
from rayrec.negatives import NEGATIVES, Draw, Sampler, Statistics, mixture, unscored, with_scores
from rayrec.pair_scores import Ahead
from rayrec.runs import Stopped
from rayrec.storage import Storage

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue
    from rayrec.engines import Mode

#: Rejected answers, the rows that they are for, and what was written for these.
Finished = tuple[pa.Table, pa.Table, pa.Table | None]
#: Weights of the language model that D3 chooses from on the validation rows.
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class GenerateLane(Lane):
    """Negatives and evaluations; a phase starts when its policy is finished, and negatives go first."""

    def __init__(self, shared: Shared, pool: Callable[[], Any], embedder: Embedder):
        super().__init__("generators", shared, threads=32)
        self._pool, self.embedder, self._done = pool, embedder, Counter[str]()

    def oracle(self) -> Future | None:
        """Train the SASRec that doubts pairs (RosePO) and guides beams (D3), on the training split.

        The future holds its folder; None if this run needs none.
        """
        data, settings = self.shared.data, self.shared.config.data
        if not self.shared.config.reads_oracle:
            return None

        def write(folder: Path, facts: dict) -> dict:
            import ray
            from ray.exceptions import RayActorError

            def fit() -> dict:
                # It takes no CPU of Ray's count: Ray Data would wait for it.
                storage, placement = self.shared.run.storage, self.shared.config.placement
                patience, deaths = placement.wait_seconds, placement.max_deaths
                options: dict[str, Any] = {"num_cpus": 0, "max_restarts": deaths, "max_task_retries": deaths}
                actor: Any = ray.remote(Oracle).options(max_concurrency=2, **options).remote()
                made = actor.fit.remote(storage, folder, data.train, data.valid, data.catalogue, settings.seed)
                while not ray.wait([made], timeout=patience)[0]:
                    if not ray.wait([actor.here.remote()], timeout=patience)[0]:
                        raise Stopped(f"00/oracle: the process that trains it gave no answer for {patience:.0f} s")
                try:
                    report: dict = ray.get(made)
                except RayActorError as error:
                    words = f"00/oracle: the process that trains it died more than {deaths} times (--max-deaths)"
                    raise Stopped(f"{words}: {(str(error).strip().splitlines() or [''])[-1]}") from error
                storage.gather(folder)
                return {"records": [{"kind": "oracle", "phase": "00/oracle", "iteration": 0, **report}]}

            if not self.shared.config.output.share:
                return fit()
            deciding = {"oracle": "sasrec", "data": data.content_hash, "seed": settings.seed}
            return shelf.take_or_make(self.shared.run.root, folder, deciding, facts, fit)

        return self.submit(lambda: self.phase("00/oracle", 1, "models", write))

    def negatives(self, policy: Future | Policy, rows: pa.Table, t: int) -> Future:
        """Rejected answers of iteration ``t`` from π_θt, the policy at its start.

        The future holds them (schema.NEGATIVES) table by table, one for each slice of the distinct rows.
        """
        train, name = self.shared.config.train, f"{t:02d}/negatives"
        catalogue, seed = self.shared.data.catalogue, self.shared.config.data.seed
        shares, rows = mixture.parse(train.negatives), distinct(rows)

        def make(current: Policy) -> Iterable[pa.Table]:
            draw = Draw(
                train.num_negatives,
                seed,
                t,
                current.version,
                train.equal_target,
                embedder=self.embedder if train.ground else None,
                touched=self.touched if {"candidates", "self_hard"} & shares.keys() else {},
                later=self.later,
                similar=self.embedder,
            )

            def write(folder: Path, facts: dict) -> dict:
                made = {kind: Statistics(catalogue, draw.k) for kind in (*shares, *["mixture"] * (len(shares) > 1))}
                for kind, numbers in mixture.assign(rows, shares, seed, t).items():
                    part = take(rows, numbers) if len(shares) > 1 else rows
                    sampler = NEGATIVES[kind]
                    outputs = self._asked(f"{name}/{kind}", current, part, sampler, draw)
                    borders = np.searchsorted(numbers, np.arange(0, len(rows) + SLICE, SLICE))
                    for number, one in _finished(part, borders, outputs, sampler, catalogue, draw):
                        if train.score_negatives:
                            one = self._scored_too(f"{name}/{kind}-{number}", current, one)
                        pq.write_table(one[0], folder / f"part-{number:05d}-{kind}.parquet")
                        for counted in {kind, "mixture"} & made.keys():
                            made[counted].add(*one)
                checkpoint.clear(folder, self.shared.run.storage)
                record = {"kind": "negatives", "phase": name, "iteration": t}
                return {"records": [record | {"sampler": kind} | one.result() for kind, one in made.items()]}

            folder = self.phase(name, self._parts_of(rows) * (1 + train.score_negatives), "parts", write)
            files = [sorted(folder.glob(f"part-{number:05d}-*.parquet")) for number in range(-(-len(rows) // SLICE))]
            return (schema.check(pq.read_table(some), schema.NEGATIVES, name) for some in files)

        return self.submit(make, policy)

    @cached_property
    def touched(self) -> Met:
        """Titles that each user met in the training split."""
        return Met(self.shared.data.train)

    @cached_property
    def later(self) -> Also | None:
        """Titles that came next, where prompts are asked for the best of them and list none (RecPO)."""
        lists = self._chooses or self.shared.config.train.target == "next"
        return None if lists else Ahead(self.shared.data.train).titles

    def _asked(self, name: str, policy: Policy, rows: pa.Table, sampler: Sampler, draw: Draw) -> pa.Table | None:
        """What the policy says for a sampler: texts of its own, or the log-probabilities of given titles."""
        if sampler.decode is None:
            return None
        catalogue, lists = self.shared.data.catalogue, sampler.choices
        choices = None if lists is None else lambda some: lists(some, catalogue, draw)
        return self._outputs(name, policy, rows, sampler.decode, sampler.answers(draw.k), choices, urgent=True)

    def _scored_too(self, name: str, policy: Policy, finished: Finished) -> Finished:
        """The rows with log π of the titles that the policy did not write (``--score-negatives``)."""
        negatives, rows, written = finished
        titles = unscored(negatives)
        if not titles:
            return finished
        among = pc.SetLookupOptions(pa.array(titles))
        asked = rows.filter(pc.call_function("is_in", [rows["example_id"]], among))

        def choices(some: pa.Table) -> list[list[str]]:
            return [titles[example_id] for example_id in some["example_id"].to_pylist()]

        most = max(map(len, titles.values()))
        outputs = self._outputs(name, policy, asked, "score", most, choices, urgent=True)
        return with_scores(negatives, outputs), rows, written

    def evaluate(self, policy: Future | Policy, oracle: Future | None, t: int) -> Future:
        """Lists for the validation and test rows, for every --decode; the future holds the metrics records."""
        data, settings, name = self.shared.data, self.shared.config.evaluate, f"{t:02d}/evaluate"
        data_config = self.shared.config.data
        examples, model = pa.concat_tables(data.evaluated.values()), self.shared.config.model
        reweighted = self.shared.config.train.reweight != "none"
        plain = not (reweighted or model.item_vectors or data_config.ask != "title")  # then the first SFT is BIGRec

        def make(current: Policy, judge: Path | None) -> list[dict]:
            def predict(rows: pa.Table, decode: Mode, alpha: float | None) -> pa.Table:
                width = 1 if decode == "greedy" else settings.beam_width
                guide = None if alpha is None else (str(judge), alpha)
                kind = decode if alpha is None else f"{decode}-{alpha:g}"
                if data_config.ask == "liking":
                    return self._predictions(self._likings(f"{name}/{kind}", current, rows), rows, decode)
                choices = _candidates if decode == "score" else None
                outputs = self._outputs(f"{name}/{kind}", current, rows, decode, width, choices, guide=guide)
                return self._predictions(outputs, rows, decode)

            def write(folder: Path, facts: dict) -> dict:
                tables, records = [], []
                for decode in cast("tuple[Mode, ...]", settings.decode):  # `auto` is resolved
                    alpha = settings.d3_alpha
                    if decode == "d3" and alpha is None:
                        alpha = max(ALPHAS, key=lambda one: self._ndcg(predict(data.valid, "d3", one), data.valid))
                    tables.append(predict(examples, decode, alpha if decode == "d3" else None))
                    record = {"kind": "evaluation", "phase": name, "iteration": t, "policy": current.version}
                    record |= {} if plain or t else {"model": "first SFT"}
                    grounded = decode == "greedy" and not self._chooses
                    record |= {"decode": decode, "embedder": settings.embedder if grounded else None}
                    record |= {"alpha": alpha} if decode == "d3" else {}
                    records += self._scored(record, tables[-1])
                pq.write_table(pa.concat_tables(tables), folder / "predictions.parquet", row_group_size=SLICE)
                checkpoint.clear(folder, self.shared.run.storage)
                return {"records": records}

            total = self._parts_of(examples) * len(settings.decode)
            if "d3" in settings.decode and settings.d3_alpha is None:
                total += self._parts_of(data.valid) * len(ALPHAS)
            if data_config.ask == "liking":  # about every candidate
                total *= CANDIDATES
            return read_json(self.phase(name, total, "parts", write) / "metrics.json")["records"]

        return self.submit(make, policy, oracle)

    def _ndcg(self, predictions: pa.Table, examples: pa.Table) -> float:
        top_k = self.shared.config.evaluate.top_k
        return evaluate(predictions, examples, self.shared.data.catalogue, top_k)[f"NDCG@{max(top_k)}"]

    def baseline(self) -> Future:
        """Popular, on the same rows."""
        data, k = self.shared.data, max(self.shared.config.evaluate.top_k)
        examples = pa.concat_tables(data.evaluated.values())

        def write(folder: Path, facts: dict) -> dict:
            choose = popular_choices if self._chooses else popular_lists

            def listed(some: pa.Table) -> pa.Table:
                none: list[list] = [[]] * len(some)
                return _prediction_table(some, "popular", "popular", none, none, choose(some, data.catalogue, k))

            predictions = each(examples, listed)
            pq.write_table(predictions, folder / "predictions.parquet", row_group_size=SLICE)
            record = {"kind": "baseline", "model": "Popular", "phase": "00/baseline", "iteration": 0}
            return {"records": self._scored(record, predictions)}

        return self.submit(lambda: self.phase("00/baseline", 1, "lists", write))

    def _scored(self, record: dict, predictions: pa.Table) -> list[dict]:
        """The metrics of each split, test first."""
        data, top_k = self.shared.data, self.shared.config.evaluate.top_k
        found = evaluate_splits(predictions, data.evaluated, data.catalogue, top_k, self._chooses)
        return [record | one | ({"protocol": "candidates"} if self._chooses else {}) for one in found]

    @property
    def _chooses(self) -> bool:
        """Whether prompts list candidates."""
        return self.shared.config.data.protocol == "candidates"

    def _parts_of(self, rows: pa.Table) -> int:
        return -(-len(rows) // self.shared.config.evaluate.part)

    def _outputs(
        self,
        name: str,
        policy: Policy,
        rows: pa.Table,
        decode: Mode,
        n: int,
        choices: Callable[[pa.Table], list[list[str]]] | None = None,
        urgent: bool = False,
        guide: tuple[str, float] | None = None,
    ) -> pa.Table:
        """What the policy writes for every row, or how it scores its ``choices``: schema.PREDICTIONS without titles.

        Rows go out and answers come in part by part, and are written in order.
        ``guide``: folder of a SASRec that has its word, and the weight of the policy beside it.
        """
        from rayrec.generators import Guide, Part

        template, size, catalogue = self.shared.template, self.shared.config.evaluate.part, self.shared.data.catalogue
        phase = "/".join(name.split("/")[:2])
        kept, total = self._kept(phase, name, policy, rows, [decode, n, guide and guide[1]]), self._parts_of(rows)
        made = kept.load()
        open_ = [i for i in range(total) if i not in made]
        if made:
            self._hear(phase, len(made))
        asked: dict[int, list[list[str]]] = {}

        def part_of(i: int) -> Part:
            some = rows.slice(i * size, size)
            asked[i] = choices(some) if choices else []
            given = [tuple(tuple(template.scored_ids(title)) for title in one) for one in asked[i]]
            items = item_numbers(some["history"].to_pylist(), catalogue) if guide else []
            return Part(
                name,
                i,
                policy.version,
                str(policy.folder),
                tuple(map(tuple, template.prompts(some))),
                decode,
                n,
                tuple(given),
                Guide(*guide, tuple(items)) if guide else None,
            )

        def answered() -> Iterator[tuple[int, pa.Table]]:
            for j, answers in self._pool().ask(len(open_), lambda j: part_of(open_[j]), urgent):
                i, given = open_[j], asked.pop(open_[j])
                texts = given if choices else [[answer.text for answer in one] for one in answers]
                logprobs = [[answer.logprob for answer in one] for one in answers]
                some = rows.slice(i * size, size)
                table = _prediction_table(some, policy.version, decode, texts, logprobs, [[]] * len(texts))
                kept.add(i, table)
                self._hear(phase, 1)
                yield i, table

        return mapped(_in_order(total, made, answered()), schema.PREDICTIONS)

    def _kept(self, phase: str, name: str, policy: Policy, rows: pa.Table, asked: list[Any]) -> KeptParts:
        """What is there of a request; the run's settings and data are those of every attempt."""
        run, manifest = self.shared.run, policy.folder.parent / MANIFEST
        deciding = {"name": name, "policy": manifest.read_text() if manifest.exists() else policy.version}
        ids = content_hash(rows.select(["example_id"]))
        deciding |= {"asked": asked, "rows": ids, "part": self.shared.config.evaluate.part}
        every = self.shared.config.placement.checkpoint_seconds
        return KeptParts(run.folder(phase), shelf.name_of(deciding), run.storage, every)

    def _likings(self, name: str, policy: Policy, rows: pa.Table) -> pa.Table:
        """Every candidate with log p(Yes) − log p(No), each asked about alone (TALLRec)."""
        asked = one_by_one(rows)
        outputs = self._outputs(name, policy, asked, "score", 2, lambda some: [[YES, NO]] * len(some))
        odds = (yes - no for some in slices(outputs) for yes, no in some["logprobs"].to_pylist())

        def joined(some: pa.Table) -> pa.Table:
            texts = _candidates(some)
            logprobs = [[next(odds) for _ in one] for one in texts]
            return _prediction_table(some, policy.version, "score", texts, logprobs, [[]] * len(texts))

        return each(rows, joined)

    def _hear(self, name: str, parts: int) -> None:
        """Count parts of a phase, whichever request they belong to."""
        self._done[name] += parts
        self.shared.run.trace.progress(name, parts=self._done[name])
        self.shared.progress.update(name, self._done[name])

    def _predictions(self, outputs: pa.Table, examples: pa.Table, decode: str) -> pa.Table:
        """Turn outputs into top-k lists: greedy text is grounded, beams are taken where they are titles.

        Among candidates, greedy text is the one title that it names, and scored ones are ranked.
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


def _candidates(rows: pa.Table) -> list[list[str]]:
    return rows["candidates"].to_pylist()


def _in_order(total: int, made: Mapping[int, pa.Table], answered: Iterator[tuple[int, pa.Table]]) -> Iterator[pa.Table]:
    """The parts 0 to ``total``, those that are ``made`` and those that are answered in any order."""
    waiting: dict[int, pa.Table] = {}
    for i in range(total):
        if i in made:
            yield made[i]
            continue
        while i not in waiting:
            number, table = next(answered)
            waiting[number] = table
        yield waiting.pop(i)
    deque(answered, maxlen=0)  # nothing is left, but it is told so


def _prediction_table(
    examples: pa.Table, policy: str, decode: str, texts: Sequence, logprobs: Sequence, titles: Sequence
) -> pa.Table:
    columns = {
        "example_id": examples["example_id"],
        "policy": pa.array([policy] * len(examples)),
        "decode": pa.array([decode] * len(examples)),
        "target": examples["target"],
        "texts": pa.array(texts, schema.PREDICTIONS.field("texts").type),
        "logprobs": pa.array(logprobs, schema.PREDICTIONS.field("logprobs").type),
        "titles": pa.array(titles, schema.PREDICTIONS.field("titles").type),
    }
    return schema.check(pa.table(columns), schema.PREDICTIONS, f"predictions of {policy}")


def _finished(
    rows: pa.Table, borders: np.ndarray, outputs: pa.Table | None, sampler: Sampler, catalogue: Catalogue, draw: Draw
) -> Iterator[tuple[int, Finished]]:
    """Rejected answers, their rows and what was written for these; ``borders``: where slices of all rows end."""
    for number, (start, end) in enumerate(itertools.pairwise(borders.tolist())):
        if end > start:
            some, own = rows.slice(start, end - start), None if outputs is None else outputs.slice(start, end - start)
            yield number, (sampler.finish(some, own, catalogue, draw), some, None if sampler.decode == "score" else own)


class Oracle:
    """Actor that trains the SASRec, on whatever node, and answers meanwhile."""

    def fit(self, storage: Storage, folder: Path, train: Any, valid: Any, catalogue: Any, seed: int) -> dict:
        """Train and save it; returns its validation."""
        here = storage.here(folder)
        here.mkdir(parents=True, exist_ok=True)
        report = sequential.fit_sasrec(train, valid, catalogue, seed, str(here))
        storage.keep(here)
        return report

    def here(self) -> None:
        """Answer that the process is alive."""
