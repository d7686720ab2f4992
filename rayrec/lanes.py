"""The two lanes of a run: training phases one after the other, generation phases beside them.

A lane's methods return at once, with a future on a finished phase; a phase that is finished already is not done again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.config import Config
from rayrec.data import Dataset, preferences, schema
from rayrec.grounding import Embedder, ground
from rayrec.metrics import evaluate
from rayrec.models.popular import popular_lists
from rayrec.negatives import NEGATIVES, Draw, negative_statistics
from rayrec.runs import Run, read_json, write_json

if TYPE_CHECKING:
    from rayrec.engines import Mode


@dataclass(frozen=True)
class Policy:
    """A version of the policy: the phase that made it, and its folder."""

    version: str
    folder: Path


@dataclass(frozen=True)
class Shared:
    """What both lanes know."""

    config: Config
    data: Dataset
    run: Run
    template: Any
    threads: int
    """CPU threads of a process beside others; ``all_threads`` of one that works alone."""
    all_threads: int
    on_finish: Callable[[str, bool], None]
    """Told the name of every finished phase, and whether it was finished just now."""
    progress: Any
    """console.LaneProgress."""


class Lane:
    """Runs phases in threads, as futures; ``--sequential`` waits for each before the next is submitted."""

    def __init__(self, name: str, shared: Shared, threads: int):
        self.name, self.shared = name, shared
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def submit(self, work: Callable[..., Any], *inputs: Any) -> Future:
        """Run ``work`` on the inputs, futures among them waited for first."""

        def resolved() -> Any:
            return work(*(value.result() if isinstance(value, Future) else value for value in inputs))

        future = self._threads.submit(resolved)
        if self.shared.config.placement.sequential:
            future.exception()  # waits; the error is raised where the run waits for all futures
        return future

    def phase(self, name: str, total: int, unit: str, make: Callable[[Path, dict], dict]) -> Path:
        """Do a phase unless it is finished: ``make(folder, facts)`` writes its files and returns its ``metrics.json``.

        That holds ``records``, the lines of metrics.jsonl, and for training ``steps``. ``facts`` go to the trace.
        """
        run = self.shared.run
        if new := not run.done(name):
            folder = run.begin(name)
            self.shared.progress.start(self.name, name, total, unit)
            with run.trace.phase(name, self.name) as facts:
                run.finish(name, make(folder, facts))
            self.shared.progress.finish(name)
        self.shared.on_finish(name, new)
        return run.folder(name)

    def close(self) -> None:
        """Drop what waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class TrainLane(Lane):
    """SFT and preference phases, in the order in which they are submitted."""

    def __init__(self, shared: Shared, group: Callable[[], Any], base: Policy):
        super().__init__("trainers", shared, threads=1)
        self.base, self._group = base, group

    def pretrain(self) -> Future:
        """Train the tiny model from scratch: every title of a training window is a target."""
        model, data, seed = self.shared.config.model, self.shared.data, self.shared.config.data.seed
        rows = model.pretrain_steps * model.pretrain_batch

        def make() -> Policy:
            drawn = preferences.draw(data.train, 0, rows, seed, "pretrain")
            table = preferences.sft_rows(drawn, model.pretrain_batch, 1, seed, "00/pretrain")
            return self._train(
                "00/pretrain", "pretrain", self.base, table, model.pretrain_batch, model.pretrain_lr, 0.0
            )

        return self.submit(make)

    def sft(self, policy: Future | Policy, rows: pa.Table, t: int) -> Future:
        """Supervised tuning on (x, y_w): BIGRec for ``t`` = 0, step 3 of iteration ``t`` else."""
        train, seed, name = self.shared.config.train, self.shared.config.data.seed, f"{t:02d}/sft"
        epochs, rate = (1, train.lr) if t else (train.first_epochs, train.first_lr)

        def make(start: Policy) -> Policy:
            table = preferences.sft_rows(rows, train.batch, epochs, seed, name)
            dropout = self.shared.config.model.lora_dropout
            return self._train(name, "sft", start, table, train.batch, rate, dropout)

        return self.submit(make, policy)

    def prefer(self, policy: Future | Policy, rows: pa.Table, negatives: Future, t: int) -> Future:
        """The preference step of iteration ``t``; its reference is ``policy``, frozen."""
        train, seed, name = self.shared.config.train, self.shared.config.data.seed, f"{t:02d}/prefer"

        def make(start: Policy, rejected: pa.Table) -> Policy:
            table = preferences.preference_rows(rows, rejected, train.prefer_batch, seed, name)
            self._sample(table, t)
            return self._train(name, "prefer", start, table, train.prefer_batch, train.lr, 0.0)

        return self.submit(make, policy, negatives)

    def _train(
        self, name: str, kind: Any, start: Policy, table: pa.Table, batch: int, rate: float, dropout: float
    ) -> Policy:
        from rayrec.trainers import Phase

        steps = table["step"][-1].as_py() + 1
        train, alone = (
            self.shared.config.train,
            name.startswith("00/"),
        )  # no generator works beside iteration 0's training

        def make(folder: Path, facts: dict) -> dict:
            rows = folder / "rows.parquet"
            pq.write_table(table, rows)
            phase = Phase(
                name=name,
                kind=kind,
                rows=str(rows),
                start=str(start.folder),
                out=str(folder / "policy"),
                steps=steps,
                batch=batch,
                lr=rate,
                warmup=steps // 20 if kind == "pretrain" else min(train.warmup_steps, steps // 2),
                dropout=dropout,
                threads=self.shared.all_threads if alone else self.shared.threads,
            )
            result = self._group().run(phase, lambda **beat: self._hear(name, **beat))
            facts |= result["facts"]
            first, last = result["steps"][0], result["steps"][-1]
            averages = _tail_means(result["steps"])
            record = {
                "kind": kind,
                "phase": name,
                "iteration": int(name.split("/")[0]),
                "rows": len(table),
                "steps": steps,
            }
            record |= {"first_loss": first["loss"], "last_loss": last["loss"], **averages}
            return {"records": [record], "steps": result["steps"]}

        return Policy(name, self.phase(name, steps, "steps", make) / "policy")

    def _hear(self, name: str, step: int = 0, **beat: Any) -> None:
        self.shared.run.trace.progress(name, step=step, **beat)
        note = f"loss {beat['loss']:.4f}" if "loss" in beat else "reference" if "reference" in beat else ""
        self.shared.progress.update(name, step, note)

    def _sample(self, table: pa.Table, t: int) -> None:
        """Keep the iteration's first three rows for people to read."""
        columns = ["example_id", "history", "chosen", "rejected"]
        write_json(self.shared.run.root / f"{t:02d}" / "samples.json", table.select(columns).slice(0, 3).to_pylist())


def _tail_means(steps: list[dict]) -> dict[str, float]:
    """Means over the last tenth of the steps, so that one batch does not speak for a phase."""
    tail = steps[-max(1, len(steps) // 10) :]
    names = [name for name in tail[0] if name not in ("step", "lr")]
    return {f"final_{name}": sum(step[name] for step in tail) / len(tail) for name in names}


class GenerateLane(Lane):
    """Negatives and evaluations; a phase starts when its policy is finished, and negatives go first."""

    def __init__(self, shared: Shared, pool: Callable[[], Any], embedder: Embedder):
        super().__init__("generators", shared, threads=32)
        self._pool, self.embedder = pool, embedder

    def negatives(self, policy: Future | Policy, rows: pa.Table, t: int) -> Future:
        """Rejected answers of iteration ``t`` from π_θt, the policy at its start; the future holds the table."""
        train, name = self.shared.config.train, f"{t:02d}/negatives"
        sampler, catalogue = NEGATIVES[train.negatives], self.shared.data.catalogue

        def make(current: Policy) -> pa.Table:
            embedder = self.embedder if train.ground else None
            seed = self.shared.config.data.seed
            draw = Draw(train.num_negatives, seed, t, current.version, train.equal_target, embedder)

            def write(folder: Path, facts: dict) -> dict:
                outputs = self._outputs(name, current, rows, sampler.decode, urgent=True) if sampler.decode else None
                table = sampler.finish(rows, outputs, catalogue, draw)
                _write_parts(folder, table, self.shared.config.evaluate.part)
                record = {"kind": "negatives", "phase": name, "iteration": t, "sampler": train.negatives}
                return {"records": [{**record, **negative_statistics(table, rows, catalogue, outputs)}]}

            folder = self.phase(name, self._parts_of(rows), "parts", write)
            return schema.check(pq.read_table(sorted(folder.glob("part-*.parquet"))), schema.NEGATIVES, name)

        return self.submit(make, policy)

    def evaluate(self, policy: Future | Policy, t: int) -> Future:
        """Protocol A on validation and test rows, for every --decode; the future holds the metrics records."""
        data, settings, name = self.shared.data, self.shared.config.evaluate, f"{t:02d}/evaluate"
        examples = pa.concat_tables([data.valid, data.test])

        def make(current: Policy) -> list[dict]:
            def write(folder: Path, facts: dict) -> dict:
                tables, records = [], []
                for decode in settings.decode:
                    outputs = self._outputs(name, current, examples, decode, urgent=False)
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

    def _outputs(self, name: str, policy: Policy, rows: pa.Table, decode: Mode, urgent: bool) -> pa.Table:
        """What the policy writes for every row: schema.PREDICTIONS with empty ``titles``."""
        from rayrec.generators import Part

        size, prompts = self.shared.config.evaluate.part, rows["history"].to_pylist()
        ids = [tuple(self.shared.template.prompt_ids(history)) for history in prompts]
        width = self.shared.config.evaluate.beam_width if "beams" in decode else 1
        parts = [
            Part(f"{name}/{decode}", i, policy.version, str(policy.folder), tuple(ids[at : at + size]), decode, width)
            for i, at in enumerate(range(0, len(ids), size))
        ]
        made = self._pool().submit(parts, urgent, lambda done: self._hear(name, done)).result()
        answers = [one for part in made for one in part]
        texts = [[answer.text for answer in one] for one in answers]
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


class Once:
    """Makes something expensive when it is first asked for, from any thread."""

    def __init__(self, make: Callable[[], Any]):
        self._make, self._lock, self.made = make, threading.Lock(), None

    def __call__(self) -> Any:
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made
