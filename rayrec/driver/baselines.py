"""Sequential recommenders and Popular on the rows of any source: trained by Ray Train, ranked over the whole catalogue.

Every model is a phase of a run folder, ``00/NAME``, so a run that was stopped goes on with the models that are left.
Lists are made twice: of all items, as those of a language model, and without what the user met (``masked``).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec import fields
from rayrec.cluster import connect, reserve
from rayrec.config import BaselinesConfig
from rayrec.data import Dataset, load, schema
from rayrec.data.met import Met
from rayrec.driver import checks, plan
from rayrec.grounding import EMBEDDERS
from rayrec.metrics import evaluate_splits
from rayrec.models import sequential
from rayrec.models.policy import folder_hash
from rayrec.models.popular import popular_choices, popular_lists
from rayrec.models.settings import SequentialConfig
from rayrec.report import terminal
from rayrec.runs.manifest import write_json
from rayrec.runs.run import Run, check_claim, open_run, versions
from rayrec.runs.storage import Storage
from rayrec.training.sequential import train

#: How a model is written in tables.
NAMES = {"popular": "Popular", "sasrec": "SASRec", "gru4rec": "GRU4Rec", "caser": "Caser", "morec": "MoRec"}
#: The kinds of lists, and what the names of their metrics end in in --json: all items, and those that the user had not
#: met; of a choice, the candidates.
_PLACES = {"unmasked": "_unmasked", "masked": "", "score": ""}


def run(config: BaselinesConfig) -> Path | None:
    """Train and rank every model that is not done; returns the run folder, or None after ``--dry-run``.

    Raises:
        ValueError: settings or data that no model can serve, before anything is trained.
    """
    terminal.show_log()
    config = connect.settle_paths(config)
    check(config)
    if config.placement.max_train_workers is not None:
        raise ValueError(
            "--max-train-workers: these models train in a group of fixed size. Take --train-workers alone."
        )
    if config.placement.cluster is not None:
        raise ValueError(f"--cluster {config.placement.cluster}: these models have no estimate. Leave it out.")
    connect.check_address(config)
    checks.check_name(config.output.name)
    gpu, data = connect.has_gpu(config), load(config.data)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=data.source))
    if (longest := max(config.sequential.top_k)) > len(data.catalogue):
        raise ValueError(f"--top-k {longest} asks for more than the catalogue's {len(data.catalogue)} items. Lower it.")
    features, hashes = _features(config.sequential, data), {"data": data.content_hash}
    if features is not None:
        hashes["embedder"] = folder_hash(str(config.sequential.embedder_path))
    name = config.output.name or f"{data.source}-baselines-seed{config.data.seed}"
    storage = Storage(config.output.runs or "runs")
    root = storage.root / name
    terminal.log("data", ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in data.counts.items()))
    if config.output.dry_run:
        storage.download_file(root / "config.json")
        check_claim(root, config, hashes)
        return None
    phases = [f"00/{model}" for model in config.sequential.models]
    with open_run(storage, root, config, hashes) as work:
        plan.write_inputs(root, data)
        work.upload("catalogue.parquet", "examples", "rejected.parquet")
        left = [phase for phase in phases if not work.done(phase)]
        work.trace.attempt(left=left, versions=versions())
        if set(left) - {"00/popular"}:
            connect.connect(config)
            reserve.reserve(config, gpu, generate=False).free_trainers()
            work.lease.record_processes()
        for phase in left:
            work.lease.check_held()
            _make(phase, config, data, work, gpu, features, work.lease.check_held)
            work.lease.record_processes()
        connect.leave()
    records, seconds = work.write_metrics(phases), work.trace.facts("seconds")
    terminal.print_iteration_table([r | {"seconds": seconds.get(r["phase"])} for r in records])
    if config.json:
        write_json(Path(config.json), _summary(records, phases, seconds))
    work.upload("trace.json")
    terminal.log("run folder", storage.name(root))
    return root


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


def _features(settings: SequentialConfig, data: Dataset) -> Any:
    """The frozen text embeddings of the titles, [I, E] float32 of length 1, where a model reads them."""
    import torch

    if "morec" not in settings.models:
        return None
    vectors: Any = EMBEDDERS[settings.embedder](settings.embedder_path).embed(data.catalogue.titles)
    return torch.nn.functional.normalize(vectors.float())


def _make(
    phase: str,
    config: BaselinesConfig,
    data: Dataset,
    work: Run,
    gpu: bool,
    features: Any,
    check_held: Callable[[], None],
) -> None:
    """Train one model and write its lists and metrics, as long as the run is ours."""
    name, settings = phase.split("/")[1], config.sequential
    rows, k = pa.concat_tables(data.evaluated.values()), max(settings.top_k)
    folder, begun, report = work.begin(phase), time.time(), {}
    with work.trace.phase(phase, "baselines") as facts:
        if name == "popular" and config.data.protocol == "candidates":
            titles = popular_choices(rows, data.catalogue, k)
            made = {"score": (titles, [[] for _ in titles])}
        elif name == "popular":
            met = Met(data.train)
            lists = {"unmasked": popular_lists(rows, data.catalogue, k, [()] * len(rows))}
            lists["masked"] = popular_lists(rows, data.catalogue, k, _met(rows, met))
            made = {place: (titles, [[] for _ in titles]) for place, titles in lists.items()}
        else:
            known = features if name == "morec" else None
            report = train(name, config, data, work, folder, gpu, known, check_held)
            made = _rank(folder, data, rows, k)
        tables, records = [], []
        for place, (titles, logprobs) in made.items():
            tables.append(_table(rows, name, place, titles, logprobs))
            base = {"kind": "baseline", "model": NAMES[name], "phase": phase, "iteration": 0, "decode": place}
            found = evaluate_splits(tables[-1], data.evaluated, data.catalogue, settings.top_k, place == "score")
            records += [{**base, **report, **one} for one in found]
        records.sort(key=lambda record: record["split"] != "test")  # they come first
        pq.write_table(pa.concat_tables(tables), folder / "predictions.parquet")
        facts["seconds"] = time.time() - begun
    check_held()
    work.finish(phase, {"records": records})
    terminal.log(phase, f"done in {time.time() - begun:.0f} s")


def _met(rows: pa.Table, met: Met) -> list[set[str]]:
    """What each row's user met before: in training, and in the row's history."""
    users, histories = rows["user"].to_pylist(), rows["history"].to_pylist()
    return [{*met.get(user, ()), *history} for user, history in zip(users, histories, strict=True)]


def _rank(folder: Path, data: Dataset, rows: pa.Table, k: int) -> dict[str, tuple[list, list]]:
    """Titles and log-probabilities of the best ``k`` of all items, and of those that the user had not met."""
    model, catalogue = sequential.load(folder), data.catalogue
    histories = sequential.item_numbers(rows["history"].to_pylist(), catalogue)
    if not rows["candidates"].null_count:
        return {"score": _choices(model, histories, rows, data, k)}
    met = sequential.item_numbers(_met(rows, Met(data.train)), catalogue)
    made = {}
    for place in ("unmasked", "masked"):
        items, logprobs = sequential.top_lists(model, histories, k, met if place == "masked" else None)
        made[place] = ([[catalogue.titles[i] for i in one] for one in items], logprobs)
    return made


def _choices(model: Any, histories: list[list[int]], rows: pa.Table, data: Dataset, k: int) -> tuple[list, list]:
    """The best ``k`` candidates of each row and their scores; ties count against the target."""
    lists, found = [], []
    asked = zip(rows["target"].to_pylist(), rows["candidates"].to_pylist(), strict=True)
    for (target, titles), score_I in zip(asked, sequential.each_score(model, histories), strict=True):
        scored = [(float(score_I[data.catalogue.index[t]]), t) for t in titles if t in data.catalogue.index]
        scored.sort(key=lambda one: (-one[0], one[1] == target))
        lists.append([title for _, title in scored[:k]])
        found.append([score for score, _ in scored[:k]])
    return lists, found


def _table(rows: pa.Table, name: str, place: str, titles: list, logprobs: list) -> pa.Table:
    columns = {"example_id": rows["example_id"], "policy": pa.repeat(name, len(rows))}
    columns |= {"decode": pa.repeat(place, len(rows)), "target": rows["target"]}
    texts = pa.array(titles, schema.PREDICTIONS.field("texts").type)
    columns |= {"texts": texts, "logprobs": pa.array(logprobs, schema.PREDICTIONS.field("logprobs").type)}
    columns |= {"ids": pa.nulls(len(rows), schema.PREDICTIONS.field("ids").type), "titles": texts}
    return schema.check(pa.table(columns), schema.PREDICTIONS, f"predictions of {name}")


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
