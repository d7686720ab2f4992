"""The rows of an iteration in the driver: draw, negatives, join, order and the file of the preference step.

Ours: the two lanes of a run on ``rows`` training rows, each drawn once, with generators that write one title at once
and a training group that trains nothing. Theirs: Ray Data streams the same rows from Parquet through as many of the
same generators to Parquet, without prompts, join and order. ``memory`` is the driver's anonymous memory, which excludes
memory-mapped files, sampled 20 times a second.
"""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benches import own_cluster
from benches.overhead import SIZE_OF_PART, NoOp, pool_of

PACKAGES, SIZE, COLUMNS = ("ray", "pyarrow"), "rows", ("processes",)
UNIT, FACTS, PAIRS = "rows per second through the driver", ("written",), ()
TITLES, HISTORY, OF_USER = 5000, 10, 16


def cases(args: Namespace, scratch: Path) -> list[tuple[dict[str, Any], list[str]]]:
    sizes = (2000,) if args.quick else (10**4, 10**5, 10**6, 10**7)
    return [
        ({"rows": rows, "processes": 2, "dtype": "", "scratch": f"{scratch}/{rows}"}, ["ray_data"]) for rows in sizes
    ]


def shown(setting: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in setting.items() if name != "scratch"}


def measure(contender: str, rows: int, processes: int, dtype: str, scratch: str) -> dict[str, Any]:
    """Return rows per second, the driver's memory, and the number of rows written."""
    with own_cluster():
        return {"ours": ours, "ray_data": ray_data}[contender](rows, processes, Path(scratch))


class Quiet:
    """Progress that is not shown."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Watch:
    """Measures the peak of this process's anonymous memory."""

    def __enter__(self) -> Watch:
        self.before = self.most = self._now()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        self.begun = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self.begun
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(0.05):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def examples(rows: int) -> Iterator[Any]:
    """Yield tables (schema.EXAMPLES): OF_USER windows for each user over a history of random titles."""
    import numpy as np
    import pyarrow as pa

    from rayrec.data import schema
    from rayrec.data.mapped import SLICE

    titles, draw = (
        pa.array([f"A title of some length, number {i} (1999)" for i in range(TITLES)]),
        np.random.default_rng,
    )
    for start in range(0, rows, SLICE):
        n = min(SLICE, rows - start)
        met = draw(start).integers(TITLES, size=(-(-n // OF_USER), OF_USER + HISTORY))
        items = np.lib.stride_tricks.sliding_window_view(met, HISTORY + 1, axis=1).reshape(-1, HISTORY + 1)[:n]
        offsets = pa.array(np.arange(0, n * HISTORY + 1, HISTORY), pa.int32())
        columns = {
            "example_id": pa.array([f"train-{i:06d}" for i in range(start, start + n)]),
            "split": pa.repeat("train", n),
            "user": pa.array([f"user {i // OF_USER}" for i in range(start, start + n)]),
            "timestamp": pa.array(np.arange(start, start + n)),
            "history": pa.ListArray.from_arrays(offsets, titles.take(pa.array(items[:, :HISTORY].ravel()))),
            "history_ratings": pa.nulls(n, pa.list_(pa.float32())),
            "target": titles.take(pa.array(items[:, HISTORY])),
            "target_rating": pa.nulls(n, pa.float32()),
            "candidates": pa.nulls(n, pa.list_(pa.string())),
        }
        yield schema.check(pa.table(columns), schema.EXAMPLES, "examples")


def ours(rows: int, processes: int, scratch: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq
    import ray

    from rayrec.data import preferences, schema
    from rayrec.data.catalogue import Catalogue
    from rayrec.data.dataset import numbered
    from rayrec.data.mapped import mapped
    from rayrec.driver.checks import resolve
    from rayrec.generation.lane import GenerateLane
    from rayrec.grounding import TitleEmbedder
    from rayrec.lanes import Policy, Shared
    from rayrec.methods import parse
    from rayrec.models.policy import load_tokenizer
    from rayrec.models.settings import ModelConfig
    from rayrec.models.tiny import make_tiny
    from rayrec.prompts import make_template
    from rayrec.runs.run import Run
    from rayrec.runs.storage import Storage
    from rayrec.training.lane import TrainLane

    titles = [f"A title of some length, number {i} (1999)" for i in range(TITLES)]
    make_tiny(titles, ModelConfig(tiny_hidden=32, tiny_layers=1), scratch / "base", 0)
    template = make_template("compact", load_tokenizer(str(scratch / "base")))
    train = numbered(mapped(examples(rows), schema.EXAMPLES))
    data: Any = SimpleNamespace(train=train, catalogue=Catalogue.from_items(titles, [[]] * TITLES))
    storage, config = Storage(str(scratch / "runs")), resolve(parse("", ["--negatives", "self_play"]))
    work = Run(storage, storage.root / "rows", config, {"data": ""})
    shared = Shared(config, data, work, template, 1, 1, lambda *_: None, Quiet())
    pool = pool_of([ray.remote(NoOp).options(num_cpus=0).remote() for _ in range(processes)], processes, scratch)
    # A group that ends every phase at once.
    done = {"facts": {}, "steps": [{"step": 0, "loss": 0.0}], "proof": {}}
    trained: Any = SimpleNamespace(run=lambda phase, progress: done)
    policy = Policy("00/sft", scratch)
    generators = GenerateLane(shared, lambda: pool, TitleEmbedder(titles))
    trainers = TrainLane(shared, lambda: trained, policy)
    with Watch() as watch:
        drawn = preferences.draw(train, 0, rows, 0, "iterations")
        trainers.prefer(policy, drawn, generators.negatives(policy, drawn, 1), None, 1).result()
    pool.close(True)
    written = pq.ParquetFile(work.folder("01/prefer") / "rows.parquet").metadata.num_rows
    return {"rate": rows / watch.seconds, "memory": max(1, watch.most - watch.before), "written": written}


class Asked:
    """:class:`NoOp` for Ray Data, one part at a call."""

    def __call__(self, rows: Any) -> Any:
        import pyarrow as pa

        return rows.append_column("rejected", pa.array(["A title of some length (1999)"] * len(rows)))


def ray_data(rows: int, processes: int, scratch: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq
    import ray

    from rayrec.data import schema

    made, out = scratch / "examples.parquet", scratch / "out"
    made.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(made, schema.EXAMPLES) as writer:
        for some in examples(rows):
            writer.write_table(some)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with Watch() as watch:
        read = ray.data.read_parquet(str(made))
        options: dict[str, Any] = {"batch_size": SIZE_OF_PART, "batch_format": "pyarrow", "num_cpus": 0.5}
        read.map_batches(Asked, compute=ray.data.ActorPoolStrategy(size=processes), **options).write_parquet(str(out))
    written = sum(pq.ParquetFile(path).metadata.num_rows for path in out.glob("*.parquet"))
    return {"rate": rows / watch.seconds, "memory": max(1, watch.most - watch.before), "written": written}
