"""Sequential recommenders and Popular on the rows of any source: trained by Ray Train, ranked over the whole catalogue.

Every model is a phase of a run folder, ``00/NAME``, so a run that was stopped goes on with the models that are left.
Lists are made twice: of all items, as those of a language model, and without the items that the user met (``masked``).
"""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec import fields, signals
from rayrec.cluster import address, connect, reserve
from rayrec.config import BaselinesConfig
from rayrec.data import Dataset, load
from rayrec.driver import checks, lists, plan
from rayrec.generation.outputs import prediction_table
from rayrec.grounding import EMBEDDERS
from rayrec.metrics import evaluate_splits
from rayrec.models.folder import folder_hash
from rayrec.models.settings import SequentialConfig
from rayrec.report import terminal
from rayrec.runs.manifest import write_json
from rayrec.runs.run import Run, check_claim, open_run, versions
from rayrec.runs.storage import Storage
from rayrec.training.sequential import SequentialGroup

#: The names of the models in tables.
NAMES = {"popular": "Popular", "sasrec": "SASRec", "gru4rec": "GRU4Rec", "caser": "Caser", "morec": "MoRec"}
#: The suffixes of metrics in --json, by the kind of their lists.
_PLACES = {"unmasked": "_unmasked", "masked": "", "score": ""}


def run(config: BaselinesConfig) -> Path | None:
    """Train and rank every model that is not done; returns the run folder, or None after ``--dry-run``.

    Raises:
        ValueError: settings or data that no model can serve, before anything is trained.
    """
    terminal.show_log()
    config = address.settle_paths(config)
    check(config)
    address.check_address(config)
    checks.check_name(config.output.name)
    gpu, data = address.has_gpu(config), load(config.data)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=data.source))
    if (longest := max(config.sequential.top_k)) > len(data.catalogue):
        raise ValueError(f"--top-k {longest} asks for more than the catalogue's {len(data.catalogue)} items. Lower it.")
    features, hashes = _features(config.sequential, data), {"data": data.content_hash}
    if features is not None:
        hashes["embedder"] = folder_hash(str(config.sequential.embedder_path))
    storage = Storage(config.output.runs or "runs")
    root = storage.root / (config.output.name or f"{data.source}-baselines-seed{config.data.seed}")
    terminal.log("data", ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in data.counts.items()))
    for name, text in data.told.items():
        terminal.log(name, text)
    signals.check()
    if config.output.dry_run:
        storage.download_file(root / "config.json")
        check_claim(root, config, hashes)
        return None
    phases = [f"00/{model}" for model in config.sequential.models]
    with open_run(storage, root, config, hashes, address.device_name(gpu)) as work:
        plan.write_inputs(root, data)
        work.upload("catalogue.parquet", "examples", "rejected.parquet")
        left = [phase for phase in phases if not work.done(phase)]
        work.trace.attempt(left=left, versions=versions())
        _Models(config, data, work, gpu, features).make(left)
        connect.leave()
    records, seconds = work.write_metrics(phases), work.trace.facts("seconds")
    terminal.print_iteration_table([r | {"seconds": seconds.get(r["phase"])} for r in records])
    if config.json:
        write_json(Path(config.json), _summary(records, phases, seconds))
    work.upload("trace.json")
    terminal.log("run folder", storage.name(root))
    return root


class _Models:
    """Makes models, in a thread of its own: the main thread waits for signals and looks after the lease."""

    def __init__(self, config: BaselinesConfig, data: Dataset, work: Run, gpu: bool, features: Any):
        self.config, self.data, self.work, self.gpu, self.features = config, data, work, gpu, features
        self.rows = pa.concat_tables(data.evaluated.values())

    def make(self, phases: list[str]) -> None:
        """Train the models, and write their lists and metrics."""
        group, finished = None, False
        with terminal.LaneProgress(["trainers"]) as bars:
            try:
                if {*phases} - {"00/popular"}:
                    alone = connect.connect(self.config)
                    reserved = reserve.reserve(self.config, self.gpu, generate=False, alone=alone)
                    group = SequentialGroup(self.config, self.data, self.work, self.gpu, reserved, bars)
                thread = ThreadPoolExecutor(1)
                for phase in phases:
                    made = thread.submit(self._make, phase, group)
                    signals.wait_for([made], meanwhile=self.work.lease.check_held)
                    self.work.lease.check_held()
                    self.work.finish(phase, made.result())
                    self.work.lease.record_processes()
                finished = True
            finally:
                if group is not None:
                    group.group.close(finished)

    def _make(self, phase: str, group: SequentialGroup | None) -> dict[str, Any]:
        """Train one model and write its lists; returns its ``metrics.json``."""
        name, begun, report = phase.split("/")[1], time.time(), {}
        folder, k = self.work.begin(phase), max(self.config.sequential.top_k)
        with self.work.trace.phase(phase, "baselines") as facts:
            if group is None or name == "popular":
                made = lists.of_popular(self.data, self.rows, k)
            else:
                report = group.fit(name, folder, self.features if name == "morec" else None)
                made = lists.of_model(folder, self.data, self.rows, k)
            tables = {
                place: prediction_table(self.rows, name, place, titles, logprobs, titles)
                for place, (titles, logprobs) in made.items()
            }
            named = (self.data.catalogue.identified(table, self.rows) for table in tables.values())
            pq.write_table(pa.concat_tables(named), folder / "predictions.parquet")
            records = [
                {"kind": "baseline", "model": NAMES[name], "phase": phase, "iteration": 0, "decode": place}
                | {**report, **found}
                for place, table in tables.items()
                for found in self._evaluate(table, place)
            ]
            facts["seconds"] = time.time() - begun
        terminal.log(phase, f"done in {time.time() - begun:.0f} s")
        return {"records": sorted(records, key=lambda record: record["split"] != "test")}

    def _evaluate(self, table: pa.Table, place: str) -> list[dict]:
        evaluated, catalogue = self.data.evaluated, self.data.catalogue
        return evaluate_splits(table, evaluated, catalogue, self.config.sequential.top_k, place == "score")


def check(config: BaselinesConfig) -> None:
    """Refuse settings out of range.

    Raises:
        ValueError: with the flag, its value and what was wanted.
    """
    settings = config.sequential
    fields.check(settings)
    fields.check(config.placement)
    for name in ("models", "top_k"):
        values = getattr(settings, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"--{name.replace('_', '-')} is {values}, wanted at least one value, each once.")
    if min(settings.top_k) < 1:
        raise ValueError(f"--top-k is {settings.top_k}, wanted list lengths of 1 or more.")
    if "morec" in settings.models and not settings.embedder_path:
        raise ValueError("--models morec reads item vectors from titles. Add --embedder-path FOLDER.")
    if config.json and Path(config.json).is_dir():
        raise ValueError(f"--json {config.json} is a folder, wanted the name of a file. Add one, as in results.json.")
    if config.placement.max_train_workers is not None:
        raise ValueError(
            "--max-train-workers: these models train in a group of fixed size. Take --train-workers alone."
        )
    if config.placement.cluster is not None:
        raise ValueError(f"--cluster {config.placement.cluster}: these models have no estimate. Leave it out.")


def _features(settings: SequentialConfig, data: Dataset) -> Any:
    """The frozen text embeddings of the titles, [I, E] float32 of length 1, where a model reads them."""
    import torch

    if "morec" not in settings.models:
        return None
    vectors: Any = EMBEDDERS[settings.embedder](settings.embedder_path).embed(data.catalogue.titles)
    return torch.nn.functional.normalize(vectors.float())


def _summary(records: list[dict], phases: list[str], seconds: dict[str, float]) -> list[dict]:
    """One record per model: the metrics on the test rows without what users met, and ``_unmasked`` with it."""
    made = []
    for phase in phases:
        mine = [r for r in records if r["phase"] == phase and r["split"] == "test"]
        one: dict[str, Any] = {"model": phase.split("/")[1], "N": mine[0]["N"], "seconds": seconds.get(phase)}
        for record in mine:
            one |= {f"{k}{_PLACES[record['decode']]}": v for k, v in record.items() if "@" in k and "valid" not in k}
        made.append(one)
    return made
