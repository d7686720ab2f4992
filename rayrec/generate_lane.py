"""The generation lane: negatives, evaluations, the popularity baseline and the oracle, beside the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.data import schema
from rayrec.data.candidates import touched
from rayrec.grounding import Embedder, ground
from rayrec.lanes import Lane, Policy, Shared
from rayrec.metrics import evaluate
from rayrec.models import sequential
from rayrec.models.popular import popular_lists
from rayrec.negatives import NEGATIVES, Draw, Sampler, mixture, negative_statistics
from rayrec.runs import read_json

if TYPE_CHECKING:
    from rayrec.engines import Mode


class GenerateLane(Lane):
    """Negatives and evaluations; a phase starts when its policy is finished, and negatives go first."""

    def __init__(self, shared: Shared, pool: Callable[[], Any], embedder: Embedder):
        super().__init__("generators", shared, threads=32)
        self._pool, self.embedder = pool, embedder

    def oracle(self) -> Future:
        """Train the SASRec that doubts pairs (RosePO), on the training split; the future holds its folder."""
        data, settings = self.shared.data, self.shared.config.data

        def write(folder: Path, facts: dict) -> dict:
            import ray

            # It takes no CPU of Ray's count: Ray Data would wait for it.
            fit = ray.remote(sequential.fit_sasrec).options(num_cpus=0)
            report = ray.get(fit.remote(data.train, data.valid, data.catalogue, settings.seed, str(folder)))
            return {"records": [{"kind": "oracle", "phase": "00/oracle", "iteration": 0, **report}]}

        return self.submit(lambda: self.phase("00/oracle", 1, "models", write))

    def negatives(self, policy: Future | Policy, rows: pa.Table, t: int) -> Future:
        """Rejected answers of iteration ``t`` from π_θt, the policy at its start; the future holds the table."""
        settings, train, name = self.shared.config, self.shared.config.train, f"{t:02d}/negatives"
        catalogue, seed = self.shared.data.catalogue, self.shared.config.data.seed
        shares = mixture.parse(train.negatives)

        def make(current: Policy) -> pa.Table:
            draw = Draw(
                train.num_negatives,
                seed,
                t,
                current.version,
                train.equal_target,
                embedder=self.embedder if train.ground else None,
                touched=self.touched,
                similar=self.embedder,
            )

            def write(folder: Path, facts: dict) -> dict:
                tables, records = [], []
                for kind, numbers in mixture.assign(rows["example_id"].to_pylist(), shares, seed, t).items():
                    part, sampler = rows.take(numbers), NEGATIVES[kind]
                    outputs = self._asked(f"{name}/{kind}", current, part, sampler, draw)
                    tables.append(sampler.finish(part, outputs, catalogue, draw))
                    written = None if sampler.decode == "score" else outputs
                    record = {"kind": "negatives", "phase": name, "iteration": t, "sampler": kind}
                    records.append(record | negative_statistics(tables[-1], part, catalogue, written))
                _write_parts(folder, pa.concat_tables(tables), settings.evaluate.part)
                return {"records": records}

            folder = self.phase(name, self._parts_of(rows), "parts", write)
            return schema.check(pq.read_table(sorted(folder.glob("part-*.parquet"))), schema.NEGATIVES, name)

        return self.submit(make, policy)

    @cached_property
    def touched(self) -> dict[str, frozenset[str]]:
        """Titles that each user met in the training split."""
        return touched(self.shared.data.train)

    def _asked(self, name: str, policy: Policy, rows: pa.Table, sampler: Sampler, draw: Draw) -> pa.Table | None:
        """What the policy says for a sampler: texts of its own, or the log-probabilities of given titles."""
        if sampler.decode is None:
            return None
        choices = sampler.choices(rows, self.shared.data.catalogue, draw) if sampler.choices else None
        return self._outputs(name, policy, rows, sampler.decode, sampler.answers(draw.k), choices, urgent=True)

    def evaluate(self, policy: Future | Policy, t: int) -> Future:
        """Protocol A on validation and test rows, for every --decode; the future holds the metrics records."""
        data, settings, name = self.shared.data, self.shared.config.evaluate, f"{t:02d}/evaluate"
        examples = pa.concat_tables([data.valid, data.test])

        def make(current: Policy) -> list[dict]:
            def write(folder: Path, facts: dict) -> dict:
                tables, records = [], []
                for decode in cast("tuple[Mode, ...]", settings.decode):  # `auto` is resolved
                    width = settings.beam_width if "beams" in decode else 1
                    outputs = self._outputs(f"{name}/{decode}", current, examples, decode, width)
                    predictions = self._predictions(outputs, examples, decode)
                    tables.append(predictions)
                    embedder = settings.embedder if decode == "greedy" else None
                    record = {"kind": "evaluation", "phase": name, "iteration": t, "policy": current.version}
                    record |= {"decode": decode, "embedder": embedder}
                    records += self._scored(record, predictions)
                pq.write_table(pa.concat_tables(tables), folder / "predictions.parquet")
                return {"records": records}

            total = self._parts_of(examples) * len(settings.decode)
            return read_json(self.phase(name, total, "parts", write) / "metrics.json")["records"]

        return self.submit(make, policy)

    def baseline(self) -> Future:
        """Popular, on the same rows."""
        data, k = self.shared.data, max(self.shared.config.evaluate.top_k)
        examples = pa.concat_tables([data.valid, data.test])

        def write(folder: Path, facts: dict) -> dict:
            lists = popular_lists(examples, data.catalogue, k)
            predictions = _prediction_table(examples, "popular", "popular", [[]] * len(lists), [[]] * len(lists), lists)
            pq.write_table(predictions, folder / "predictions.parquet")
            record = {"kind": "baseline", "model": "Popular", "phase": "00/baseline", "iteration": 0}
            return {"records": self._scored(record, predictions)}

        return self.submit(lambda: self.phase("00/baseline", 1, "lists", write))

    def _scored(self, record: dict, predictions: pa.Table) -> list[dict]:
        """The metrics of each split, test first."""
        data, top_k = self.shared.data, self.shared.config.evaluate.top_k
        cut = len(data.valid)
        halves = {"test": (predictions.slice(cut), data.test), "valid": (predictions.slice(0, cut), data.valid)}
        return [
            {**record, "split": split, **evaluate(made, examples, data.catalogue, top_k)}
            for split, (made, examples) in halves.items()
        ]

    def _parts_of(self, rows: pa.Table) -> int:
        return -(-len(rows) // self.shared.config.evaluate.part)

    def _outputs(
        self,
        name: str,
        policy: Policy,
        rows: pa.Table,
        decode: Mode,
        n: int,
        choices: list[list[str]] | None = None,
        urgent: bool = False,
    ) -> pa.Table:
        """What the policy writes for every row, or how it scores its ``choices``: schema.PREDICTIONS without titles."""
        from rayrec.generators import Part

        template, size = self.shared.template, self.shared.config.evaluate.part
        prompts = [tuple(template.prompt_ids(history)) for history in rows["history"].to_pylist()]
        given = [tuple(tuple(template.answer_ids(title)) for title in one) for one in choices or ()]
        parts = [
            Part(
                name,
                i,
                policy.version,
                str(policy.folder),
                tuple(prompts[a : a + size]),
                decode,
                n,
                tuple(given[a : a + size]),
            )
            for i, a in enumerate(range(0, len(prompts), size))
        ]
        made = self._pool().submit(parts, urgent, lambda done: self._hear("/".join(name.split("/")[:2]), done)).result()
        answers = [one for part in made for one in part]
        texts = choices or [[answer.text for answer in one] for one in answers]
        logprobs = [[answer.logprob for answer in one] for one in answers]
        return _prediction_table(rows, policy.version, decode, texts, logprobs, [[]] * len(texts))

    def _hear(self, name: str, done: int) -> None:
        self.shared.run.trace.progress(name, parts=done)
        self.shared.progress.update(name, done)

    def _predictions(self, outputs: pa.Table, examples: pa.Table, decode: str) -> pa.Table:
        """Turn outputs into top-k lists: greedy text is grounded, beams are taken where they are titles."""
        settings, catalogue = self.shared.config.evaluate, self.shared.data.catalogue
        texts, k = outputs["texts"].to_pylist(), max(settings.top_k)
        if decode == "greedy":
            first = [one[0] if one else "" for one in texts]
            lists = ground(first, catalogue, self.embedder, k, settings.popularity_gamma)
        else:
            lists = [[t for t in dict.fromkeys(one) if t in catalogue.index][:k] for one in texts]
        at = outputs.column_names.index("titles")
        return outputs.set_column(at, "titles", pa.array(lists, schema.PREDICTIONS.field("titles").type))


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


def _write_parts(folder: Path, table: pa.Table, size: int) -> None:
    for number, start in enumerate(range(0, max(len(table), 1), size)):
        pq.write_table(table.slice(start, size), folder / f"part-{number:05d}.parquet")
