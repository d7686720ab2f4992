"""The plan of a run: its phases, and their rows, tokens and disk, before anything is started or written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayrec.config import Config
from rayrec.data import Dataset
from rayrec.data.mapped import SLICE
from rayrec.driver.checks import Lengths
from rayrec.generation.lane import GenerateLane
from rayrec.grounding import TitleEmbedder
from rayrec.lanes import BASE, Planned, Policy, Shared
from rayrec.selfplay import self_play
from rayrec.training.lane import TrainLane

if TYPE_CHECKING:
    from rayrec.models.shape import Shape

#: Bytes that one parameter needs in a policy folder, for the disk estimate.
_BYTES = {"float32": 4, "bfloat16": 2}


def phases(config: Config, data: Dataset) -> list[Planned]:
    """All phases in the order of the sequential run: the loop, with lanes that only list them."""
    shared = Shared(config, data)
    trainers = TrainLane(shared, _nothing, Policy(BASE, Path()))
    generators = GenerateLane(shared, _nothing, TitleEmbedder([]))
    counts: Any = range(config.train.rows_per_iteration), range(config.train.first_rows)
    self_play(config, trainers, generators, lambda t: counts[0], counts[1])
    return shared.planned


def _nothing() -> None:
    """Stand for the actors, which a plan never asks for."""


def describe(
    config: Config,
    data: Dataset,
    plan: Iterable[Planned],
    tokens: Lengths,
    shape: Shape,
    **resources: Any,
) -> dict[str, Any]:
    """The plan as a person reads it (``plan.json``, ``--dry-run``)."""
    train, model = config.train, config.model
    rank = model.lora_rank or 0
    whole = not rank or resources["device"] == "cpu"  # there a policy has its merged weights beside its adapters
    per_policy = 4 * rank * shape.adapters + whole * shape.parameters * _BYTES[train.dtype]
    rows = []
    for phase in plan:
        length = tokens.prompt + phase.answers * tokens.answer if phase.answers else 0
        tokens_seen = phase.rows * phase.epochs * length
        rows.append({"phase": phase.name, "rows": phase.rows, "batches": phase.batches, "tokens": tokens_seen})
        rows[-1] |= {"epochs": phase.epochs}
    return {
        "rows": {"train": len(data.train), **{split: len(rows) for split, rows in data.evaluated.items()}},
        "counts": {
            **data.counts,
            "titles_changed_by_tokenizer": tokens.changed_titles,
        },
        "phases": rows,
        "model": {"name": model.model, "parameters": shape.parameters, "lora_rank": model.lora_rank},
        "resources": resources,
        "disk_bytes": per_policy * sum(p.makes_policy for p in plan),
    }


def write_inputs(folder: Path, data: Dataset) -> None:
    """Write the tables that the numbers rest on: catalogue, validation and test examples, rejected rows."""
    import pyarrow.parquet as pq

    tables: dict[str, pa.Table] = {
        "catalogue.parquet": data.catalogue.to_table(),
        **{f"examples/{split}.parquet": rows for split, rows in data.evaluated.items()},
    }
    if len(data.rejected):
        tables["rejected.parquet"] = data.rejected
    (folder / "examples").mkdir(exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / name, row_group_size=SLICE)
