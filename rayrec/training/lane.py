"""The training lane: SFT and preference phases, one after the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from rayrec.data import preferences
from rayrec.data.mapped import slices
from rayrec.lanes import Lane, Planned, Policy, Shared
from rayrec.objectives.settings import make_objective
from rayrec.runs import cache
from rayrec.runs.manifest import write_json
from rayrec.training import keys, pair_columns, supervised
from rayrec.training.oracle import train_oracle

if TYPE_CHECKING:
    from rayrec.training.board import Phase


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


class Arranged(NamedTuple):
    """The rows of a phase in the order of its steps."""

    phase: Phase
    """Without the policy at its start."""
    rows: int
    counts: dict[str, float]
    """Rows that were left out, and other facts of them, by name."""


class TrainLane(Lane):
    """SFT and preference phases, in the order in which they are submitted.

    The rows of an iteration's phase are arranged, and their ``tokens`` written, beside the phase before it.
    """

    def __init__(
        self,
        shared: Shared,
        group: Callable[[], Any],
        base: Policy,
        tokens: Callable[[Phase], None] = lambda phase: None,
    ):
        super().__init__("trainers", shared, threads=1)
        self.base, self._group, self._tokens = base, group, tokens
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

        def arrange(folder: Path) -> Arranged:
            drawn = preferences.draw(data.train, 0, rows, seed, "pretrain")
            table = preferences.sft_rows(drawn, batch, 1, seed, planned.name)
            pace = Pace(model.pretrain_lr, float(model.pretrain_steps // 20), "linear")
            return self._arranged(planned, folder, table, batch, pace, 0.0)

        return self._training(planned, arrange, self.base)

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

        def arrange(folder: Path, items: Path | None) -> Arranged:
            table = preferences.sft_rows(rows, train.batch, epochs, seed, name)
            dropout = self.shared.config.model.lora_dropout
            return self._arranged(planned, folder, table, train.batch, pace, dropout, items=items)

        read = oracle if self.shared.config.model.item_vectors else None
        return self._training(planned, arrange, policy, read)

    def prefer(
        self, policy: Future | Policy, rows: pa.Table, negatives: Future, oracle: Future | None, t: int
    ) -> Future:
        """The preference step of iteration ``t``; its reference is ``policy``, frozen. ``oracle`` smooths, if asked."""
        train, seed, name = self.shared.config.train, self.shared.config.data.seed, f"{t:02d}/prefer"

        steps = -(-len(rows) * train.prefer_epochs // train.prefer_batch)
        pace = Pace(train.lr, train.warmup, train.schedule)
        pace.check(name, steps)
        planned = Planned(name, "prefer", len(rows), steps, "steps", train.prefer_epochs, 1 + train.num_negatives, True)

        def arrange(folder: Path, rejected: Iterable[pa.Table], judge: Path | None) -> Arranged:
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
                counts |= told
            table = preferences.arrange(table, train.prefer_batch, train.prefer_epochs, seed, name, names)
            table = pair_columns.fill(table, names, known, of_batches=True)
            self._sample(table, t)
            return self._arranged(planned, folder, table, train.prefer_batch, pace, 0.0, counts)

        return self._training(planned, arrange, policy, negatives, oracle)

    def _training(self, planned: Planned, arrange: Callable[..., Arranged], policy: Any, *inputs: Any) -> Future:
        """Train from ``policy`` on what ``arrange(folder, *inputs)`` returns; the future holds the new policy."""
        made = partial(_policy, planned.name)
        return self.phase(planned, partial(self._train, planned), made, policy, *inputs, ahead=arrange)

    def _arranged(
        self,
        planned: Planned,
        folder: Path,
        table: pa.Table,
        batch: int,
        pace: Pace,
        dropout: float,
        counts: dict[str, float] | None = None,
        items: Path | None = None,
    ) -> Arranged:
        """Write the arranged rows of a phase into its ``folder``, and of an iteration their tokens."""
        from rayrec.training.batches import write_rows
        from rayrec.training.board import Phase

        config, kind, steps = self.shared.config, planned.kind, table["step"][-1].as_py() + 1
        phase = Phase(
            name=planned.name,
            kind=kind,
            rows=str(folder / "rows.parquet"),
            start="",
            out=str(folder / "policy"),
            steps=steps,
            batch=batch,
            lr=pace.lr,
            warmup=pace.steps(steps),
            schedule=pace.schedule,
            dropout=dropout,
            threads=self.shared.all_threads if _alone(planned) else self.shared.threads,
            items=str(items or ""),
            sft_loss=supervised.described(config.supervised, self.shared.data) if kind == "sft" else "",
        )
        write_rows(table, Path(phase.rows), batch)
        if not _alone(planned):
            self._write_tokens(phase)
        return Arranged(phase, len(table), counts or {})

    def _write_tokens(self, phase: Phase) -> None:
        self.shared.run.storage.upload(Path(phase.rows))  # Ray Data reads it, on whatever node
        self._tokens(phase)

    def _train(self, planned: Planned, folder: Path, facts: dict, start: Policy, arranged: Arranged) -> dict:
        """Train a policy into ``folder``, from ``start`` on the arranged rows; returns the phase's metrics."""
        from rayrec.training.batches import remove_tokens

        name, kind, alone = planned.name, planned.kind, _alone(planned)
        config, storage = self.shared.config, self.shared.run.storage
        phase = dataclasses.replace(arranged.phase, start=str(start.folder))
        key = cache.key_hash(keys.checkpoint_key(phase, config))
        facts |= arranged.counts

        def fit() -> dict:
            if alone:  # where no other run has made the policy
                self._write_tokens(phase)
            keyed = dataclasses.replace(phase, key=key)
            result = self._group().run(keyed, lambda **beat: self._hear(name, **beat))
            remove_tokens(phase, storage)
            facts.update(result["facts"], proof=result["proof"])
            first, last = result["steps"][0], result["steps"][-1]
            record = {"kind": kind, "phase": name, "iteration": int(name.split("/")[0])}
            record |= {"rows": arranged.rows, "steps": phase.steps, **arranged.counts}
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


def _alone(planned: Planned) -> bool:
    """Whether a phase trains for iteration 0, beside which no generator works."""
    return planned.name.startswith("00/")


def _policy(name: str, folder: Path) -> Policy:
    return Policy(name, folder / "policy")


def _tail_means(steps: list[dict]) -> dict[str, float]:
    """Means over the last tenth of the steps, so that one batch does not speak for a phase."""
    tail = steps[-max(1, len(steps) // 10) :]
    names = [name for name in tail[0] if name not in ("step", "lr")]
    return {f"final_{name}": sum(step[name] for step in tail) / len(tail) for name in names}
