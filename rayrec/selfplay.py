"""Self-play tuning of a recommender (SPRec section 4.3): the loop, and what stands around it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from rayrec import cluster, console, plan
from rayrec.config import Config, to_dict
from rayrec.data import Dataset, load, preferences
from rayrec.generators import GeneratorPool, Setup
from rayrec.grounding import EMBEDDERS, Embedder
from rayrec.lanes import GenerateLane, Lane, Once, Policy, Shared, TrainLane
from rayrec.report import best_policy, build_report
from rayrec.runs import Run, check_claim, read_json, write_json
from rayrec.timeline import by_iteration, spans
from rayrec.tracking import Tracker, check
from rayrec.trainers import TrainGroup


def self_play(
    config: Config, trainers: TrainLane, generators: GenerateLane, draw: Callable[[int], pa.Table], first_rows: pa.Table
) -> list[Future]:
    """The algorithm. Every name is a future, so a line starts as soon as what it reads is finished.

    Negatives and the SFT step both read π_θt, and an evaluation only π_θ(t+1): generation runs beside training, and the
    numbers are those of the sequential order.
    """
    train = config.train
    start = trainers.pretrain() if config.model.model == "tiny" else trainers.base
    policy = trainers.sft(start, first_rows, 0)  # BIGRec
    evaluations = [generators.baseline(), generators.evaluate(policy, 0)]
    for t in range(1, train.iterations + 1):
        rows = draw(t)
        current, tuned = policy, policy
        negatives = generators.negatives(current, rows, t) if train.prefer else None  # beside the next line
        if train.sft:
            tuned = policy = trainers.sft(current, rows, t)
        if negatives is not None:
            policy = trainers.prefer(tuned, rows, negatives, t)  # reference = tuned, frozen
        evaluations.append(generators.evaluate(policy, t))  # beside iteration t + 1
    return evaluations


def run(config: Config) -> Path | None:
    """Do a whole run, or what is left of it; returns its folder, or None after ``--dry-run``.

    Raises:
        ValueError: anything about the settings, the data or the machine that can be known before the first actor starts.
    """
    config = plan.resolve(cluster.settle_paths(config))
    cluster.check_address(config)
    gpu, engine = cluster.has_gpu(config), choose_engine(config)
    check(config.output.track)
    data = load(config.data)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=data.source))
    plan.check_data(config, data)
    embedder = make_embedder(config, data)
    scratch = Path(tempfile.mkdtemp(prefix="rayrec-"))
    try:
        base, template_name, parameters = make_base(config, data, scratch)
        template = load_template(base, template_name)
        tokens = plan.check_lengths(config, data, template)
        phases = plan.phases(config, len(data.valid) + len(data.test))
        threads = config.placement.threads or max(
            1, (os.cpu_count() or 1) // (config.placement.train_workers + config.placement.generators)
        )
        resources = {
            "train_workers": config.placement.train_workers,
            "generators": config.placement.generators,
            "device": "gpu" if gpu else "cpu",
            "threads": threads,
            "cpus": os.cpu_count(),
            "engine": engine,
        }
        shown = plan.describe(config, data, phases, tokens, parameters, **resources)
        root = run_folder(config, data)
        shown["folder"] = str(root)
        if config.output.dry_run:
            check_claim(root, config, data.content_hash)
            console.print_plan(shown)
            return None
        work = Run(root, config, data.content_hash)
        if config.model.model == "tiny":
            base = keep_base(work, base)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    work.forget_unusable((phase.name, phase.needs) for phase in phases)
    shown["done"] = [phase.name for phase in phases if work.done(phase.name)]
    shown["to_do"] = [phase.name for phase in phases if not work.done(phase.name)]
    write_json(work.root / "plan.json", shown)
    plan.write_inputs(work.root, data)
    console.print_plan(shown)
    Session(config, data, work, phases, base, template, embedder, gpu, engine, threads).run()
    return work.root


class Session:
    """One attempt at a run: lanes, actors and their end."""

    def __init__(
        self,
        config: Config,
        data: Dataset,
        work: Run,
        phases: list[plan.PhasePlan],
        base: Path,
        template: Any,
        embedder: Embedder,
        gpu: bool,
        engine: Literal["vllm", "torch"],
        threads: int,
    ):
        self.config, self.data, self.work, self.phases = config, data, work, phases
        self.template, self.embedder, self.threads = template, embedder, threads
        self.base, self.gpu, self._lock = base, gpu, threading.Lock()
        placement = config.placement
        self.group = Once(lambda: TrainGroup(config, str(base), template, work.root / ".ray_train", gpu))
        setup = Setup(config, str(base), template, tuple(data.catalogue.titles), gpu, engine, threads)
        self.pool = Once(lambda: GeneratorPool(setup, work.trace))
        self.tracker = Tracker(work.root, config.output.track, to_dict(config))
        self.all_threads = placement.threads or max(threads, (os.cpu_count() or 1) // placement.train_workers)

    def run(self) -> None:
        """Do what is left of the run, print its tables and write its report."""
        left = [phase.name for phase in self.phases if not self.work.done(phase.name)]
        self.work.trace.attempt(left=left, sequential=self.config.placement.sequential)
        lanes: list[Lane] = []
        with console.LaneProgress() as progress:
            try:
                if left:
                    cluster.connect(self.config, self.gpu)
                    cluster.interrupt_on_sigterm()  # after Ray, which sets a handler of its own
                    # Both take seconds to come up, so both start now, beside the first phase.
                    self.group(), self.pool()
                lanes = self._lanes(progress)
                self._wait(self._submit(*lanes))
            except KeyboardInterrupt:
                progress.log("stopped", "the same command goes on at the first unfinished phase")
                raise SystemExit(130) from None
            finally:
                self._close(lanes)
        self._report()
        progress.log("report", str(build_report(self.work.root)))

    def _lanes(self, progress: Any) -> tuple[TrainLane, GenerateLane]:
        shared = Shared(
            self.config, self.data, self.work, self.template, self.threads, self.all_threads, self._finished, progress
        )
        base = Policy("base", self.base)
        return TrainLane(shared, self.group, base), GenerateLane(shared, self.pool, self.embedder)

    def _submit(self, trainers: TrainLane, generators: GenerateLane) -> list[Future]:
        train, seed, data = self.config.train, self.config.data.seed, self.data
        count = train.rows_per_iteration

        def draw(t: int) -> pa.Table:
            return preferences.draw(data.train, (t - 1) * count, count, seed, "iterations")

        return self_play(
            self.config, trainers, generators, draw, preferences.draw(data.train, 0, train.first_rows, seed, "first")
        )

    def _wait(self, futures: list[Future]) -> None:
        """Wait for all, in short waits so that signals are heard, and raise the first error."""
        open_: set[Future] = set(futures)
        while open_:
            done, open_ = wait(open_, timeout=0.5, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()

    def _finished(self, phase: str, new: bool) -> None:
        """Rebuild metrics.jsonl, send the new numbers to the trackers, remove weights that nothing needs any more."""
        with self._lock:
            if new:
                self.tracker.phase(read_json(self.work.folder(phase) / "metrics.json"))
            self._prune(self.work.write_metrics(p.name for p in self.phases))

    def _prune(self, records: list[dict]) -> None:
        keep = self.config.output.keep
        if keep == "all":
            return
        policies = [p.needs[0] for p in self.phases if p.kind == "evaluate" and self.work.done(p.name)]
        best = best_policy([r for r in records if r["kind"] == "evaluation"])
        kept = {*policies[-int(keep) :], *(best[:1] if best else ())}
        for phase in self.phases:
            readers = [p for p in self.phases if phase.name in p.needs]
            last = not readers
            if phase.makes_policy and not last and phase.name not in kept and self.work.has_weights(phase.name):
                if all(self.work.done(p.name) for p in readers):
                    self.work.prune(phase.name)

    def _report(self) -> None:
        times = by_iteration(spans(read_json(self.work.root / "trace.json")["traceEvents"]))
        rows = [r for r in read_records(self.work.root) if r["kind"] in ("evaluation", "baseline")]
        for row in rows:
            seconds, overlap = times.get(row["iteration"], (None, None))
            row |= {"seconds": seconds, "overlap": overlap} if row["kind"] == "evaluation" else {}
        console.print_iteration_table(rows)
        for t in range(1, self.config.train.iterations + 1):
            samples = self.work.root / f"{t:02d}" / "samples.json"
            if samples.exists():
                console.print_samples(read_json(samples), f"Iteration {t}")

    def _close(self, lanes: list[Lane]) -> None:
        self.tracker.close()
        for lane in lanes:
            lane.close()
        for part in (self.pool, self.group):
            if part.made is not None:
                part.made.close()
        if "ray" in sys.modules:
            import ray

            ray.shutdown()
        self.work.trace.flush()


def read_records(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def choose_engine(config: Config) -> Literal["vllm", "torch"]:
    """Resolve ``--engine auto``: vllm where it is installed.

    Raises:
        ValueError: ``--engine vllm`` without vllm.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if config.evaluate.engine == "vllm" and not installed:
        raise ValueError("--engine vllm: vllm is not installed. Install rayrec[cpu] or rayrec[gpu], or --engine torch.")
    if config.evaluate.engine == "auto" and not installed:
        warnings.warn("vllm is not installed: generating with transformers, several times slower", stacklevel=2)
    return "torch" if config.evaluate.engine == "torch" or not installed else "vllm"


def make_embedder(config: Config, data: Dataset) -> Embedder:
    """The embedder that grounds greedy text."""
    name, path = config.evaluate.embedder, config.evaluate.embedder_path
    if name == "title":
        return EMBEDDERS[name](data.catalogue.titles)  # pyright: ignore[reportCallIssue]
    if not path:
        raise ValueError(f"--embedder {name} needs --embedder-path, a model2vec or sentence-transformers folder.")
    return EMBEDDERS[name](path)  # pyright: ignore[reportCallIssue]


def make_base(config: Config, data: Dataset, scratch: Path) -> tuple[Path, str, int]:
    """The base model's folder or hub id, the resolved template's name and the number of parameters.

    Raises:
        ValueError: the model cannot be had or opened, or sees fewer tokens than ``--max-length``.
    """
    from rayrec.models.policy import check_model, context_length, load_tokenizer
    from rayrec.models.tiny import make_tiny
    from rayrec.prompts import resolve_template

    base = Path(config.model.model).expanduser()
    if config.model.model == "tiny":
        base = scratch / "base"
        titles = [t for t, n in zip(data.catalogue.titles, data.catalogue.popularity, strict=True) if n]
        make_tiny(titles, config.model, base, config.data.seed)
    elif base.is_dir():
        base = base.absolute()  # it is opened from other folders too
    elif config.model.model.startswith((".", "/", "~")) or config.model.model.count("/") > 1 or base.exists():
        raise ValueError(
            f"--model {config.model.model}: no such folder. Name a Hugging Face folder or hub id, or `tiny`."
        )
    name = str(base)
    check_model(name)
    context_length(config.model, name)
    template = resolve_template(config.model.template, config.model.model, load_tokenizer(name))
    return base, template, plan.count_parameters(name)


def load_template(base: Path, name: str) -> Any:
    """The prompt template bound to the base model's tokenizer."""
    from rayrec.models.policy import load_tokenizer
    from rayrec.prompts import make_template

    return make_template(name, load_tokenizer(base))


def keep_base(work: Run, base: Path) -> Path:
    """Move a made base model into the run folder, as its first finished phase."""
    if not work.done("00/base"):
        shutil.copytree(base, work.begin("00/base"), dirs_exist_ok=True)
        work.finish("00/base", {"records": []})
    return work.folder("00/base")


def run_folder(config: Config, data: Dataset) -> Path:
    """``RUNS/NAME``; without --name it says source, model, method and seed."""
    train = config.train
    method = "-".join([train.objective, train.negatives] if train.prefer else ["sft"])
    model = Path(config.model.model).name
    name = config.output.name or f"{data.source}-{model}-{method}-seed{config.data.seed}"
    return Path(config.output.runs or "runs").absolute() / name
