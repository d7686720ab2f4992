"""A run on many cards, by engines and workers that only keep time: is the driver ever what they wait for?

The driver's loop, lanes, pool and board are those of a run, on a real Ray; a generator and a training worker sleep for
as long as the cost model says a card computes (rayrec/driver/cost_model.py: Llama-3.1-8B, adapters of rank 16, H100).
Half of the cards train and half generate; rows, batches and test rows grow with their number, so the phases are equally
long. Ray Data's tokens are not written: they are there after as long as one of its tasks takes here, for on a cluster
the tasks of a phase run side by side.

"ours" and "theirs" are iterations per hour, as they came and as the phases allow: what the two lanes take if nothing
but cards is waited for. Below the table, of every phase of an iteration: the seconds that its cards compute, those that
it took, and the share of them in which its cards were at work; then the critical path of the iteration, and what
would limit it next.
"""

from __future__ import annotations

import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benches import own_cluster
from benches.rows import TITLES, Quiet, examples
from benches.timekeepers import AROUND, Engines, Workers

PACKAGES, SIZE, COLUMNS = ("ray",), "cards", ("rows",)
UNIT, FACTS, PAIRS = "iterations per hour", ("phases", "path", "limits", "driver"), ()
#: Rows of an iteration, test rows, and rows of a batch, for each card.
ROWS, TESTED, BATCH = 128, 32, 16
#: The sizes of Llama-3.1-8B.
SIZES: dict[str, Any] = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
SIZES |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    sizes = [(2, 64, 1)] if args.quick else [(8, ROWS, 2), (64, ROWS, 2), (512, ROWS, 2)]
    return [
        (
            {"cards": cards, "rows": cards * rows, "turns": turns, "dtype": "", "scratch": f"{scratch}/{cards}"},
            ["allowed"],
        )
        for cards, rows, turns in sizes
    ]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name not in ("scratch", "turns")}


def measure(contender: str, cards: int, rows: int, turns: int, dtype: str, scratch: str) -> dict[str, Any]:
    """Iterations per hour; of ours also the phases, the path and the limits, as lines of text."""
    plan = Plan(cards, rows, turns, Path(scratch) / contender)
    if contender == "allowed":
        return {"rate": 3600 / plan.allowed(), "memory": 0}
    with own_cluster():
        return Run(plan).found()


class Plan:
    """A run of some cards and what the cost model says of it."""

    def __init__(self, cards: int, rows: int, turns: int, folder: Path):
        from transformers import LlamaConfig

        from rayrec.data import schema
        from rayrec.data.catalogue import Catalogue
        from rayrec.data.dataset import numbered
        from rayrec.data.mapped import mapped
        from rayrec.driver.checks import Lengths, resolve
        from rayrec.driver.cost_model import Work
        from rayrec.driver.device import DEVICES
        from rayrec.methods import parse
        from rayrec.models.policy import load_tokenizer
        from rayrec.models.settings import ModelConfig
        from rayrec.models.shape import Shape
        from rayrec.models.tiny import make_tiny
        from rayrec.prompts import make_template

        half, self.folder, self.cards = cards // 2, folder, cards
        self.titles = [f"A title of some length, number {i} (1999)" for i in range(TITLES)]
        make_tiny(self.titles, ModelConfig(tiny_hidden=32, tiny_layers=1), folder / "base", 0)
        self.template = make_template("compact", load_tokenizer(str(folder / "base")))
        LlamaConfig(**SIZES).save_pretrained(folder / "shape")
        batch, tested = BATCH * half, TESTED * cards
        flags = {"train-workers": half, "generators": half, "batch": batch, "prefer-batch": batch, "model": "a/model"}
        flags |= {"iterations": turns, "first-rows": rows, "rows-per-iteration": rows, "decode": "greedy"}
        flags |= {"negatives": "self_play", "valid-rows": tested, "test-rows": tested, "warmup": 0, "first-warmup": 0}
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        self.config = resolve(parse("", ["--preset", "paper", *words]), gpu=True)
        train = numbered(mapped(examples(rows), schema.EXAMPLES))
        some = train.slice(0, min(len(train), tested)).drop_columns("number")
        known: dict[str, Any] = {"train": train, "valid": some, "evaluated": {"test": some}}
        self.data: Any = SimpleNamespace(**known, catalogue=Catalogue.from_items(self.titles, [[]] * TITLES))
        tokens = Lengths(170, 10, 14, 0)
        shape = Shape.of(str(folder / "shape"))
        self.work = Work(self.config, tokens, shape, tested, DEVICES["H100"], 8, (1, 1))

    @property
    def phases(self) -> list[Any]:
        """The phases of the loop."""
        from rayrec.driver import plan

        return plan.phases(self.config, self.data)

    def part(self) -> tuple[float, float]:
        """Seconds that a part adds to an engine's work, and those that one takes alone."""
        size = self.config.evaluate.part
        alone = self.work.part_seconds("greedy", size, 1)
        return self.work.part_seconds("greedy", size, 1, 1000) / 1000, alone

    def seconds(self, phase: Any) -> float:
        """Seconds of a phase if nothing but cards is waited for."""
        if phase.makes_policy:
            return phase.batches * self.work.step_seconds(phase) + AROUND
        if phase.kind not in ("negatives", "evaluate"):
            return 0.0
        most = -(-phase.batches // self.config.placement.generators)
        own, alone = self.part()
        return max(most * own, -(-most // self.work.in_flight("greedy")) * alone)

    def allowed(self) -> float:
        """Seconds of an iteration, from one policy to the next, if nothing but cards is waited for."""
        from rayrec.driver.cost_model import _ends

        ends = _ends(self.phases, {one.name: self.seconds(one) for one in self.phases}, False, 0.0)
        made = [ends[one.name] for one in self.phases if one.kind == "prefer"]
        first = ends["00/sft"]
        return (made[-1] - first) / len(made)


class Run:
    """One run of a plan, with timekeepers in place of the cards."""

    def __init__(self, plan: Plan):
        import ray

        from rayrec.data import preferences
        from rayrec.generation.lane import GenerateLane
        from rayrec.grounding import TitleEmbedder
        from rayrec.lanes import BASE, Policy, Shared
        from rayrec.runs import run
        from rayrec.runs.storage import Storage
        from rayrec.selfplay import self_play
        from rayrec.training.lane import TrainLane

        self.plan, config, data = plan, plan.config, plan.data
        storage = Storage(str(plan.folder / "runs"))
        self.work = run.Run(storage, storage.root / "scale", config, {"data": ""})
        shared = Shared(config, data, self.work, plan.template, 1, 1, lambda *_: None, Quiet())
        self.tokens = self._tokens()
        self.engines: Any = (
            ray.remote(Engines)
            .options(num_cpus=0, max_concurrency=100_000)
            .remote({"greedy": plan.part()}, plan.titles, config.evaluate.part)
        )
        pool, group = self._pool(), self._group()
        base = Policy(BASE, plan.folder / "base")
        trainers = TrainLane(shared, lambda: group, base, lambda phase: time.sleep(self.tokens))
        lanes = trainers, GenerateLane(shared, lambda: pool, TitleEmbedder(plan.titles))
        count = config.train.rows_per_iteration
        self.begun, cpu = time.time(), time.process_time()
        self_play(
            config,
            *lanes,
            lambda t: preferences.draw(data.train, (t - 1) * count, count, 0, "iterations"),
            preferences.draw(data.train, 0, config.train.first_rows, 0, "first"),
        )
        for lane in lanes:
            for future in lane.futures:
                future.result()
        self.cpu, self.wall = time.process_time() - cpu, time.time() - self.begun
        self.pool_cpu = time.clock_gettime(time.pthread_getcpuclockid(pool._thread.ident))
        self.busy = ray.get(self.engines.times.remote())
        pool.close(True)
        group.close(True)
        for lane in lanes:
            lane.close()

    def _pool(self) -> Any:
        from rayrec.generation import ENGINES
        from rayrec.generation.pool import GeneratorPool

        engines = self.engines

        class Pool(GeneratorPool):
            """A pool whose actors are timekeepers in one process."""

            def _actor(self, index: int) -> Any:
                def method(name: str) -> Any:
                    return SimpleNamespace(remote=partial(getattr(engines, name).remote, index))

                return SimpleNamespace(ready=method("ready"), answer=method("answer"))

            def _kill(self, actor: Any) -> None:
                pass

        setup: Any = SimpleNamespace(config=self.plan.config, gpu=True, engine=ENGINES["vllm"])
        return Pool(setup, self.work.trace, None)  # pyright: ignore[reportArgumentType]

    def _group(self) -> Any:
        import ray

        from rayrec.training.group import TrainGroup

        plan = self.plan
        seconds = {one.kind: plan.work.step_seconds(one) for one in plan.phases if one.makes_policy}

        class Group(TrainGroup):
            """A group whose workers are timekeepers in one process."""

            def _fit(self) -> None:
                self.size = self.counts[0]
                keeper: Any = ray.remote(Workers).options(num_cpus=0).remote(self.board, seconds)
                ray.get(keeper.work.remote(self.size))

        return Group(plan.config, _nothing, {}, self.work, True, None)  # pyright: ignore[reportArgumentType]

    def _tokens(self) -> float:
        """Seconds in which Ray Data writes the tokens of one file of rows, once it has done so before."""
        from rayrec.data import preferences
        from rayrec.training.batches import write_rows, write_tokens
        from rayrec.training.board import Phase

        plan, took = self.plan, 0.0
        folder = self.work.root / "tried"
        folder.mkdir(parents=True)
        rows = preferences.draw(plan.data.train, 0, min(len(plan.data.train), 1 << 13), 0, "tried")
        table = preferences.sft_rows(rows, 64, 1, 0, "tried")
        write_rows(table, folder / "rows.parquet", 64)
        phase = Phase("tried", "sft", str(folder / "rows.parquet"), "", str(folder / "policy"), 1, 64, 0.0, 0, 0.0, 1)
        for _ in range(2):
            begun = time.time()
            write_tokens(phase, plan.template, self.work.storage, 60.0)
            took = time.time() - begun
        return took

    def found(self) -> dict[str, Any]:
        """The measures, and lines of text about the last iteration."""
        from rayrec.report.timeline import spans
        from rayrec.runs.manifest import read_json

        self.work.trace.flush()
        events = read_json(self.work.root / "trace.json")["traceEvents"]
        by_name = {one.phase: one for one in spans(events)}
        made = [by_name[one.name].end for one in self.plan.phases if one.kind == "prefer"]
        turns = self.plan.config.train.iterations
        took = (made[-1] - by_name["00/sft"].end) / turns
        path = self._path(by_name, f"{turns:02d}/prefer")
        lines = [
            self._phase(one, by_name[one.name]) for one in self.plan.phases if one.name.startswith(f"{turns:02d}/")
        ]
        parts = sum(one.batches for one in self.plan.phases if one.kind in ("negatives", "evaluate"))
        driver = f"{self.cpu / self.wall:.0%} of a core; the pool's thread {1e3 * self.pool_cpu / parts:.1f} ms a part"
        return {"rate": 3600 / took, "memory": 0, "phases": lines, "path": path[0], "limits": path[1], "driver": driver}

    def _phase(self, phase: Any, span: Any) -> str:
        cards, allowed = self.plan.config.placement.train_workers, self.plan.seconds(phase)
        if phase.makes_policy:
            worked = [phase.batches * self.plan.work.step_seconds(phase) + AROUND] * cards
        else:
            worked = [self.busy[phase.name].get(i, 0.0) for i in range(self.plan.config.placement.generators)]
        shares = sorted(one / span.seconds for one in worked)
        mean = sum(shares) / len(shares)
        return (
            f"{phase.name}: {allowed:.1f} s of its cards, took {span.seconds:.1f} s ({allowed / span.seconds:.0%}); "
            f"cards at work {mean:.0%} of it ({shares[0]:.0%} to {shares[-1]:.0%})"
        )

    def _path(self, by_name: dict[str, Any], last: str) -> tuple[list[str], list[str]]:
        """The phases that a policy waited for, back to the policy before it, and what each second of them went to."""
        needs = {one.name: one.needs for one in self.plan.phases}
        before = f"{int(last[:2]) - 1:02d}/prefer"
        start = before if before in by_name else "00/sft"
        path, name, lost = list[str](), last, dict[str, float]()
        planned = {one.name: one for one in self.plan.phases}
        while name != start and name in by_name:
            span, cause = by_name[name], max(needs[name], key=lambda one: by_name[one].end, default=start)
            gap = max(0.0, span.start - by_name[cause].end)
            cards, rest = self.plan.seconds(planned[name]), span.seconds
            kind = "training workers" if planned[name].makes_policy else "engines"
            spent = {kind: min(cards, rest), "driver": max(0.0, rest - cards), "between phases": gap}
            for what, seconds in spent.items():
                lost[what] = lost.get(what, 0.0) + seconds
            told = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in spent.items())
            path.insert(0, f"{name} after {cause}: {told}")
            name = cause
        whole = sum(lost.values())
        order = sorted(lost.items(), key=lambda item: -item[1])
        return path, [f"{what} {seconds:.1f} s ({seconds / whole:.0%})" for what, seconds in order]


def _nothing(setup: dict) -> None:
    """Stand for the workers' function, which nobody calls."""


def lines(records: list[dict[str, Any]]) -> list[str]:
    """The lines below the table."""
    told = []
    for one in records:
        told.append(f"\n{one['cards']} cards, the last iteration")
        told += [f"  {line}" for line in one["ours_phases"] or ()]
        told += ["  the critical path:", *(f"    {line}" for line in one["ours_path"] or ())]
        told.append(f"  it goes to: {', '.join(one['ours_limits'] or ())}")
        told.append(f"  the driver: {one['ours_driver']}")
    return told
