"""One attempt at a run: what is left of it is done, printed and reported."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayrec import signals
from rayrec.cluster import connect, devices, reserve
from rayrec.cluster.memory import gigabytes
from rayrec.config import Config
from rayrec.data import preferences
from rayrec.deciding import changed, to_dict
from rayrec.driver import cost_model, plan
from rayrec.driver.prepare import Prepared, keep_base, prepare
from rayrec.errors import Stopped
from rayrec.generation import ENGINES
from rayrec.generation.engine import Setup, modes_of
from rayrec.generation.lane import GenerateLane
from rayrec.generation.pool import GeneratorPool
from rayrec.lanes import BASE, Lane, Once, Policy, Shared
from rayrec.models.proof import Probe
from rayrec.objectives.settings import make_objective
from rayrec.report import doubts, terminal
from rayrec.report.build import build_report
from rayrec.report.lists import user_lists
from rayrec.report.record import read_lines, read_samples
from rayrec.report.rows import best_policy, evaluated
from rayrec.report.timeline import by_iteration, peaks, placed, spans
from rayrec.report.trackers import RUNS, Tracker
from rayrec.runs import cache, former
from rayrec.runs.about import about
from rayrec.runs.lease import kill_children
from rayrec.runs.manifest import read_json, write_json
from rayrec.runs.run import Run, check_claim, open_run, versions
from rayrec.runs.storage import TROUBLES, Storage, errno_of
from rayrec.selfplay import self_play
from rayrec.training import supervised
from rayrec.training.batches import write_tokens
from rayrec.training.board import Phase
from rayrec.training.group import TrainGroup
from rayrec.training.lane import TrainLane
from rayrec.training.worker import work as train

_log = logging.getLogger(__name__)


_GO_ON = "The same command goes on at the first unfinished phase."


@contextmanager
def ending() -> Iterator[None]:
    """The end of a process that may have started Ray: with 1 after an error, printed in one line where it is the user's
    or the cluster's, and with 130 after a signal."""
    code = 1
    signals.catch()
    try:
        signals.check()
        yield
        return
    except (ValueError, ConnectionError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
    except Stopped as error:
        logs = connect.logs()
        print(f"error: {error}\n{_GO_ON}{logs and f' Logs of this node: {logs}'}", file=sys.stderr)
    except KeyboardInterrupt:
        code = signals.EXIT_CODE
    except BaseException as error:
        if errno_of(error) in TROUBLES:
            print(f"error: {error}. Nothing that was finished is lost. {_GO_ON}", file=sys.stderr)
        elif not isinstance(error, SystemExit):  # which rich raises where the reader of a pipe has gone
            traceback.print_exc()
    # Threads may still wait for actors, and an orderly end of Ray beside them can crash. On a joined cluster the actors
    # end with this process; a cluster of our own is its children.
    if "ray" in sys.modules:
        kill_children()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    if code == signals.EXIT_CODE:
        signals.announce()  # at the very end: a phase that ends beside this still prints
    if "ray" not in sys.modules:
        sys.exit(code)
    os._exit(code)


def run(config: Config) -> Path | None:
    """Do a whole run, or what is left of it; returns its folder, or None after ``--dry-run``.

    After an error that was raised amid phases Ray is left as it is: ``ray.shutdown()`` ends it.

    Raises:
        ValueError: anything about the settings, the data or the machine that can be known before an actor starts.
        KeyboardInterrupt: on Ctrl-C and SIGTERM; the same call goes on at the first unfinished phase.
    """
    terminal.show_log()
    with ExitStack() as opened:
        with tempfile.TemporaryDirectory(prefix="rayrec-", ignore_cleanup_errors=True) as scratch:
            ready = prepare(config, Path(scratch))
            storage = Storage(ready.config.output.runs or "runs")
            disk = ready.shown["disk_bytes"], ready.config.output.keep, storage.root
            lines = cost_model.time_here(ready) | plan.disk_here(ready.phases, *disk)
            ready = dataclasses.replace(ready, shown=ready.shown | {"lines": ready.shown["lines"] | lines})
            signals.check()
            if ready.config.output.dry_run:
                storage.download_file(ready.root / "config.json")
                check_claim(ready.root, ready.config, ready.hashes)
                estimated = cost_model.of_plan(ready) if ready.config.placement.cluster else {}
                terminal.print_plan(ready.shown | estimated | {"settings": changed(ready.config)})
                return None
            work = opened.enter_context(open_run(storage, ready.root, ready.config, ready.hashes, ready.device))
            if ready.config.model.model == "tiny":
                ready = dataclasses.replace(ready, base=keep_base(work, ready.base))
        _do(ready, work)
    return work.root


def _do(ready: Prepared, work: Run) -> None:
    """Print the plan of an opened run, write its inputs, and do what is left."""
    names = {kind: [phase.name for phase in ready.phases if phase.kind == kind] for kind in ("evaluate", "baseline")}
    relisted = former.relist(work, names["evaluate"], names["baseline"], ready.config.evaluate.top_k)
    work.forget_unusable((p.name, () if p.name in relisted else p.needs) for p in ready.phases)
    done = {phase.name: work.done(phase.name) for phase in ready.phases}
    shown = ready.shown | {"done": [p for p in done if done[p]], "to_do": [p for p in done if not done[p]]}
    write_json(work.root / "plan.json", shown)
    cache.make_once(work.root.parent / cache.SHARED / "lengths", ready.lengths_key, lambda _: ready.tokens._asdict())
    plan.write_inputs(work.root, ready.data)
    work.upload("plan.json", "catalogue.parquet", "examples", "rejected.parquet")
    terminal.print_plan(shown)
    Session(ready, work, relisted | {*names["baseline"]}).run()


class Session:
    """One attempt at a run: lanes, actors and their end. Phases that are ``alone`` need no actor."""

    def __init__(self, ready: Prepared, work: Run, alone: Collection[str] = ()):
        self.ready, self.work, self.config, self.data = ready, work, ready.config, ready.data
        self.phases, self._alone, self._lock = ready.phases, alone, threading.Lock()
        config, base, titles = ready.config, str(ready.base), tuple(ready.data.catalogue.titles)
        engine = ENGINES[config.evaluate.engine]
        asked = frozenset(modes_of(config))
        threads, probe = ready.threads, probe_of(ready)
        setup = Setup(config, work.storage, base, ready.template, titles, ready.gpu, engine, threads, asked, probe)
        self.reserved = reserve.Reserved()
        # The objective itself and not its name: a class of the user's script is known only to the driver.
        training = {"config": config, "base": base, "template": ready.template, "probe": probe, "asked": ready.asked}
        training["objective"] = make_objective(config.loss)
        training["catalogue"] = supervised.make(config.supervised, ready.data.catalogue, ready.template)
        self.shares = config.placement.placement == "shared"

        def before(phase: Phase) -> None:
            if self.shares:
                self.pool().rest()

        self.group = Once(lambda: TrainGroup[Phase](config, train, training, work, ready.gpu, self.reserved, before))
        self.pool = Once(lambda: GeneratorPool(setup, work.trace, self.reserved))
        parts = [(phase.name, phase.unit, phase.batches) for phase in ready.phases]
        self.tracker = Tracker(work.root, config.output.track, to_dict(config), parts)
        work.upload(RUNS)

    def run(self) -> None:
        """Do what is left of the run, print its tables and write its report."""
        left = [phase.name for phase in self.phases if not self.work.done(phase.name)]
        self.work.trace.attempt(
            left=left, sequential=self.config.placement.sequential, versions=versions(), **about(self.ready.device)
        )
        lanes: tuple[TrainLane, GenerateLane] | None = None
        finished = False
        with terminal.LaneProgress(phases=[phase.name for phase in self.phases]) as progress:
            try:
                if {*left} - {*self._alone}:
                    alone = connect.connect(self.config)
                    trains = any(phase.makes_policy and phase.name in left for phase in self.phases)
                    self.reserved = reserve.reserve(self.config, self.ready.gpu, trains, alone=alone)
                    self.work.lease.record_processes()
                    # Both take seconds to come up, so both start now, beside the first phase. A generator measures how
                    # much of a GPU is free when it starts, so where they share it, trainers come when it sleeps.
                    if self.shares:
                        self.pool().rest()
                    if trains:
                        self.group()
                    self.pool()
                lanes = self._lanes(progress)
                self._submit(*lanes)
                futures = [future for lane in lanes for future in lane.futures]
                signals.wait_for(futures, meanwhile=self.work.lease.check_held)
                finished = True
            finally:
                self._close(lanes or (), finished)
        signals.check()
        self._report()
        report = build_report(self.work.root)
        self.work.upload(report.name)
        progress.log("report", self.work.storage.name(report))

    def _lanes(self, progress: Any) -> tuple[TrainLane, GenerateLane]:
        ready, placement = self.ready, self.config.placement
        shared = Shared(
            config=self.config,
            data=self.data,
            run=self.work,
            template=ready.template,
            threads=ready.threads,
            all_threads=ready.all_threads,
            last_threads=placement.threads or max(1, devices.cores() // placement.generators),
            on_finish=self._finished,
            progress=progress,
            heard=self.tracker.live,
            check_held=self.work.lease.check_held,
            gpu=ready.gpu,
        )
        tokens = partial(
            write_tokens, template=ready.template, storage=self.work.storage, patience=placement.wait_seconds
        )
        trainers = TrainLane(shared, self.group, Policy(BASE, ready.base), tokens)
        return trainers, GenerateLane(shared, self.pool, ready.embedder)

    def _submit(self, trainers: TrainLane, generators: GenerateLane) -> None:
        train, seed, rows = self.config.train, self.config.data.seed, self.ready.tuning
        count = train.rows_per_iteration

        def draw(t: int) -> pa.Table:
            return preferences.draw(rows, (t - 1) * count, count, seed, "iterations")

        first = preferences.draw(rows, 0, train.first_rows, seed, "first")
        self_play(self.config, trainers, generators, draw, first)

    def _finished(self, phase: str, new: bool) -> None:
        """Rebuild metrics.jsonl, send the new numbers to the trackers, remove weights that nothing needs any more.

        Raises:
            ValueError: most of a negatives phase is not the policy's own, and a phase that is left reads it.
        """
        with self._lock:
            metrics = read_json(self.work.folder(phase) / "metrics.json")
            if new:
                self.work.lease.record_processes()
                self.tracker.phase(metrics)
                for record in metrics["records"]:
                    if record["kind"] == "evaluation":
                        terminal.log(phase, evaluated(record))
            self._prune(self.work.write_metrics(p.name for p in self.phases))
            left = any(phase in p.needs and not self.work.done(p.name) for p in self.phases)
        for doubt in doubts.found([metrics]):
            lost = doubt.kind == "negatives" and doubt.share > doubts.LOST
            if lost and left and not self.config.train.allow_random_negatives:
                raise ValueError(
                    f"{doubt}. Wanted at least half from the policy. Train it longer first (--first-rows, "
                    "--first-epochs, another --name), or add --allow-random-negatives, which goes on with these."
                )
            if new:
                _log.warning("%s", doubt)

    def _prune(self, records: list[dict]) -> None:
        keep = self.config.output.keep
        if keep == "all":
            return
        makers = {phase.name for phase in self.phases if phase.makes_policy}
        readers = [phase for phase in self.phases if not phase.makes_policy and self.work.done(phase.name)]
        policies = list(dict.fromkeys(need for phase in readers for need in phase.needs if need in makers))
        best = best_policy([r for r in records if r["kind"] == "evaluation"])
        kept = {*policies[-int(keep) :], *(best[:1] if best else ())}
        for phase in self.phases:
            readers = [p.name for p in self.phases if phase.name in p.needs]
            wanted = not phase.makes_policy or phase.name in kept or not all(map(self.work.done, readers))
            if not wanted and self.work.done(phase.name):
                self.work.prune(phase.name)

    def _report(self) -> None:
        events = read_json(self.work.root / "trace.json")["traceEvents"]
        lanes = placed(events)
        for lane, nodes in lanes.items() if len({*itertools.chain(*lanes.values())}) > 1 else ():
            terminal.log("placement", f"{lane} on {', '.join(nodes)}")
        phases = spans(events)
        times = by_iteration(phases)
        rows = [r for r in read_lines(self.work.root / "metrics.jsonl") if r["kind"] in ("evaluation", "baseline")]
        for row in rows:
            seconds, overlap = times.get(row["iteration"], (None, None))
            row |= {"seconds": seconds, "overlap": overlap} if row["kind"] == "evaluation" else {}
        terminal.print_iteration_table(rows)
        for doubt in doubts.of_run(self.work.root):
            terminal.log("mind", str(doubt))
        most = ", ".join(f"{lane} {gigabytes(count)}" for lane, count in peaks(events).items())
        seconds = terminal.span(max((one.end for one in phases), default=0.0))
        terminal.log("resources", seconds + (f", most memory of a process: {most}" if most else ""))
        try:
            if lists := user_lists(self.work.root, rows):
                terminal.print_lists(lists)
        except ValueError as error:
            terminal.log("users", str(error))
        for t in range(1, self.config.train.iterations + 1):
            samples = self.work.root / f"{t:02d}" / "samples.json"
            if samples.exists():
                try:
                    terminal.print_samples(read_samples(samples), f"Iteration {t}")
                except ValueError as error:
                    terminal.log("samples", str(error))

    def _close(self, lanes: tuple[Lane, ...], finished: bool) -> None:
        for lane in lanes:
            lane.close()
        for part in (self.pool, self.group):
            if part.made is not None:
                part.made.close(finished)
        self.tracker.close()  # after what could be lost: it may wait for a server
        if finished:
            connect.leave()
        self.work.trace.flush()
        if finished:
            self.work.upload("trace.json")


def probe_of(ready: Prepared) -> Probe:
    """The training row, of the first ones, with the shortest prompt: it leaves room for the token that vLLM adds."""
    some, template = ready.tuning.slice(0, 64), ready.template
    prompts = template.prompts(some)
    at = min(range(len(prompts)), key=lambda i: len(prompts[i]))
    room = ready.config.model.max_length - len(prompts[at]) - 1
    return Probe(prompts[at], template.answer_ids(some["target"][at].as_py())[:room])
