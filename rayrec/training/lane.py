"""The training lane: SFT and preference phases, one after the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from rayrec.data import preferences
from rayrec.data.mapped import slices
from rayrec.lanes import Lane, Planned, Policy, Shared
from rayrec.objectives.settings import make_objective
from rayrec.runs import cache
from rayrec.runs.manifest import write_json
from rayrec.training import keys, pair_columns, supervised
from rayrec.training.oracle import train_oracle


class Pace(NamedTuple):
    """The learning rate of a phase."""

    lr: float
    """Its peak."""
    warmup: float | None
    """Steps until then, below 1 their share of all steps, rounded up; None: 20, and at most half of the steps."""
    schedule: str
    """The decay after it: `linear`, `cosine` or `constant`."""

    def steps(self, of: int) -> int:
        """Return the steps of the warm-up in a phase of ``of`` steps."""
        if self.warmup is None:
            return min(20, of // 2)
        return math.ceil(round(self.warmup * of, 6)) if self.warmup < 1 else int(self.warmup)

    def check(self, phase: str, of: int) -> None:
        """Refuse a warm-up that is no whole number of steps, or in which the rate would never reach its peak.

        Raises ValueError: with the phase, its steps and what to take.
        """
        if self.warmup is not None and (self.steps(of) > of or (self.warmup >= 1 and self.warmup % 1)):
            flag = "--first-warmup" if phase.startswith("00/") else "--warmup"
            raise ValueError(
                f"{flag} {self.warmup:g}: {phase} has {of} steps. Take a whole number of at most that, or a share of "
                f"them, such as {flag} 0.05."
            )


class TrainLane(Lane):
    """SFT and preference phases, in the order in which they are submitted."""

    def __init__(self, shared: Shared, group: Callable[[], Any], base: Policy):
        super().__init__("trainers", shared, threads=1)
        self.base, self._group = base, group
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="oracle")

    def oracle(self) -> Future | None:
        """Train the SASRec that doubts pairs (RosePO) and guides beams (D3), on the training split, beside the phases.

        The future holds its folder; None if this run needs none.
        """
        if not self.shared.config.reads_oracle:
            return None
        planned = Planned("00/oracle", "oracle", len(self.shared.data.train), 1, "models", answers=0)
        return self.phase(planned, partial(train_oracle, self.shared), Path, threads=self._beside)

    def close(self) -> None:
        """Drop what waits."""
        super().close()
        self._beside.shutdown(wait=False, cancel_futures=True)

    def pretrain(self) -> Future:
        """Train the tiny model from scratch: every title of a training window is a target."""
        model, data, seed = self.shared.config.model, self.shared.data, self.shared.config.data.seed
        rows, batch = model.pretrain_steps * model.pretrain_batch, model.pretrain_batch
        planned = Planned("00/pretrain", "pretrain", rows, model.pretrain_steps, "steps", makes_policy=True)

        def make(folder: Path, facts: dict) -> dict:
            drawn = preferences.draw(data.train, 0, rows, seed, "pretrain")
            table = preferences.sft_rows(drawn, batch, 1, seed, planned.name)
            pace = Pace(model.pretrain_lr, float(model.pretrain_steps // 20), "linear")
            return self._train(planned, folder, facts, self.base, table, batch, pace, 0.0)

        return self.phase(planned, make, partial(_policy, planned.name))

    def sft(self, policy: Future | Policy, rows: pa.Table, t: int, oracle: Future | None = None) -> Future:
        """Supervised tuning on (x, y_w): BIGRec for ``t`` = 0, step 3 of iteration ``t`` else.

        With ``--item-vectors`` the first of them gives the policy those of the ``oracle`` (LLaRA).
        """
        train, seed, name = self.shared.config.train, self.shared.config.data.seed, f"{t:02d}/sft"
        epochs = 1 if t else train.first_epochs
        pace = Pace(train.lr, train.warmup, train.schedule)
        if not t:
            pace = Pace(train.first_lr, train.first_warmup, train.first_schedule)
        steps = -(-len(rows) * epochs // train.batch)
        pace.check(name, steps)
        planned = Planned(name, "sft", len(rows), steps, "steps", epochs, makes_policy=True)

        def make(folder: Path, facts: dict, start: Policy, items: Path | None) -> dict:
            table = preferences.sft_rows(rows, train.batch, epochs, seed, name)
            dropout = self.shared.config.model.lora_dropout
            return self._train(planned, folder, facts, start, table, train.batch, pace, dropout, items=items)

        read = oracle if self.shared.config.model.item_vectors else None
        return self.phase(planned, make, partial(_policy, name), policy, read)

    def prefer(
        self, policy: Future | Policy, rows: pa.Table, negatives: Future, oracle: Future | None, t: int
    ) -> Future:
        """The preference step of iteration ``t``; its reference is ``policy``, frozen. ``oracle`` smooths, if asked."""
        train, seed, name = self.shared.config.train, self.shared.config.data.seed, f"{t:02d}/prefer"

        steps = -(-len(rows) * train.prefer_epochs // train.prefer_batch)
        pace = Pace(train.lr, train.warmup, train.schedule)
        pace.check(name, steps)
        planned = Planned(name, "prefer", len(rows), steps, "steps", train.prefer_epochs, 1 + train.num_negatives, True)

        def make(folder: Path, facts: dict, start: Policy, rejected: Iterable[pa.Table], judge: Path | None) -> dict:
            loss = self.shared.config.loss
            objective = make_objective(loss)
            names = objective.reads | ({"smoothing"} if loss.smoothing != "none" else set())
            known = pair_columns.Known(self.shared.data, train.target != "next", judge)
            table = pair_columns.fill(preferences.pairs(rows, rejected), names, known)
            counts = dict[str, float]()
            if objective.ordered:
                table, counts["unordered"] = pair_columns.ordered(table)
                if counts["unordered"] and not len(table):
                    raise ValueError(
                        f"{name}: none of {counts['unordered']} pairs has a chosen title that is worth more than the "
                        f"rejected one, and {loss.objective} learns from no other. Take other --negatives, or another "
                        "--objective."
                    )
            counts["left_out"] = len(rows) - len(table)
            titles = (some.select(["chosen", "rejected"]).to_pylist() for some in slices(table))
            if told := objective.shape.told((row["chosen"], row["rejected"]) for some in titles for row in some):
                self.shared.progress.log(name, ", ".join(f"{key} {value:.4g}" for key, value in told.items()))
                facts |= told
                counts |= told
            table = preferences.arrange(table, train.prefer_batch, train.prefer_epochs, seed, name, names)
            table = pair_columns.fill(table, names, known, of_batches=True)
            self._sample(table, t)
            return self._train(planned, folder, facts, start, table, train.prefer_batch, pace, 0.0, counts)

        return self.phase(planned, make, partial(_policy, name), policy, negatives, oracle)

    def _train(
        self,
        planned: Planned,
        folder: Path,
        facts: dict,
        start: Policy,
        table: pa.Table,
        batch: int,
        pace: Pace,
        dropout: float,
        counts: dict[str, float] | None = None,
        items: Path | None = None,
    ) -> dict:
        """Train a policy into ``folder`` on the arranged rows of ``table``; returns the phase's metrics."""
        from rayrec.training.batches import remove_tokens, write_rows
        from rayrec.training.board import Phase

        name, kind, steps = planned.name, planned.kind, table["step"][-1].as_py() + 1
        config = self.shared.config
        alone = name.startswith("00/")  # no generator works beside iteration 0's training

        rows = folder / "rows.parquet"
        write_rows(table, rows, batch)
        phase = Phase(
            name=name,
            kind=kind,
            rows=str(rows),
            start=str(start.folder),
            out=str(folder / "policy"),
            steps=steps,
            batch=batch,
            lr=pace.lr,
            warmup=pace.steps(steps),
            schedule=pace.schedule,
            dropout=dropout,
            threads=self.shared.all_threads if alone else self.shared.threads,
            items=str(items or ""),
            sft_loss=supervised.described(config.supervised, self.shared.data) if kind == "sft" else "",
        )

        key, storage = cache.key_hash(keys.checkpoint_key(phase, config)), self.shared.run.storage

        def fit() -> dict:
            storage.upload(rows)  # Ray Data reads it, on whatever node
            keyed = dataclasses.replace(phase, key=key)
            result = self._group().run(keyed, lambda **beat: self._hear(name, **beat))
            remove_tokens(phase, storage)
            facts.update(result["facts"], proof=result["proof"])
            first, last = result["steps"][0], result["steps"][-1]
            record = {"kind": kind, "phase": name, "iteration": int(name.split("/")[0])}
            record |= {"rows": len(table), "steps": steps, **(counts or {})}
            record |= {"first_loss": first["loss"], "last_loss": last["loss"], **_tail_means(result["steps"])}
            return {"records": [record], "steps": result["steps"], "proof": result["proof"]}

        # The number of workers of an elastic group is not known beforehand, nor the files behind a hub id. A whole
        # policy of a large model would take its disk twice.
        adapters = config.model.lora_rank and start.folder.is_dir()
        fixed, small = len(config.worker_counts) == 1, config.model.model == "tiny" or adapters
        shares = alone and config.output.share and fixed and small
        if not shares:
            return fit()

        def fit_here() -> dict:
            metrics = fit()
            storage.download_all(folder)  # the policy may lie on another node
            return metrics

        shared = keys.shared_key(phase, config, self.shared.gpu)
        return cache.share_phase(self.shared.run.root, folder, shared, facts, fit_here)

    def _hear(self, name: str, step: int = 0, **beat: Any) -> None:
        self.shared.run.trace.progress(name, step=step, **beat)
        note = f"loss {beat['loss']:.4f}" if "loss" in beat else "reference" if "reference" in beat else ""
        self.shared.progress.update(name, step, note)
        self.shared.heard(name, step, **beat)

    def _sample(self, table: pa.Table, t: int) -> None:
        """Keep the iteration's first three rows for people to read."""
        columns = ["example_id", "history", "chosen", "rejected"]
        run, name = self.shared.run, f"{t:02d}/samples.json"
        write_json(run.root / name, table.select(columns).slice(0, 3).to_pylist())
        run.upload(name)


def _policy(name: str, folder: Path) -> Policy:
    return Policy(name, folder / "policy")


def _tail_means(steps: list[dict]) -> dict[str, float]:
    """Means over the last tenth of the steps, so that one batch does not speak for a phase."""
    tail = steps[-max(1, len(steps) // 10) :]
    names = [name for name in tail[0] if name not in ("step", "lr")]
    return {f"final_{name}": sum(step[name] for step in tail) / len(tail) for name in names}
