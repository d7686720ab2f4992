"""What a run will do, known and checked before anything is started or written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayrec.config import Config
from rayrec.data import Dataset
from rayrec.data.mapped import SLICE
from rayrec.driver.checks import Lengths

if TYPE_CHECKING:
    from rayrec.models.shape import Shape

#: Bytes that one parameter needs in a policy folder, for the disk estimate.
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class PhasePlan:
    """One phase of the run: its name is that of its folder, log lines, metrics and trace events."""

    name: str
    kind: str
    needs: tuple[str, ...]
    """Policies whose weights it reads."""
    rows: int
    steps: int = 0
    epochs: int = 1

    @property
    def makes_policy(self) -> bool:
        """Whether its folder holds a policy."""
        return self.kind in ("pretrain", "sft", "prefer")


def phases(config: Config, evaluated: int) -> list[PhasePlan]:
    """All phases in the order of the sequential run; ``evaluated`` counts the rows of an evaluation."""
    train, model = config.train, config.model
    plan: list[PhasePlan] = []
    start: tuple[str, ...] = ()
    if config.pretrains:
        rows = model.pretrain_steps * model.pretrain_batch
        plan.append(PhasePlan("00/pretrain", "pretrain", (), rows, model.pretrain_steps))
        start = ("00/pretrain",)
    plan.append(PhasePlan("00/baseline", "baseline", (), evaluated))
    if config.reads_oracle:
        plan.append(PhasePlan("00/oracle", "oracle", (), 0))
    if train.first_rows:
        steps = -(-train.first_rows * train.first_epochs // train.batch)
        plan.append(PhasePlan("00/sft", "sft", start, train.first_rows, steps, train.first_epochs))
        start = ("00/sft",)
    plan.append(PhasePlan("00/evaluate", "evaluate", start, evaluated))
    for t in range(1, train.iterations + 1):
        rows = train.rows_per_iteration
        if train.prefer:
            plan.append(PhasePlan(f"{t:02d}/negatives", "negatives", start, rows))
        if train.sft:
            plan.append(PhasePlan(f"{t:02d}/sft", "sft", start, rows, -(-rows // train.batch)))
            start = (f"{t:02d}/sft",)
        if train.prefer:
            steps = -(-rows * train.prefer_epochs // train.prefer_batch)
            plan.append(PhasePlan(f"{t:02d}/prefer", "prefer", start, rows, steps, train.prefer_epochs))
            start = (f"{t:02d}/prefer",)
        plan.append(PhasePlan(f"{t:02d}/evaluate", "evaluate", start, evaluated))
    return plan


def describe(
    config: Config,
    data: Dataset,
    plan: Iterable[PhasePlan],
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
        length = tokens.prompt + tokens.answer
        if phase.kind == "prefer":
            length += train.num_negatives * tokens.answer
        seen = phase.rows * (phase.epochs if phase.kind != "baseline" else 0)
        batches = phase.steps or -(-phase.rows // config.evaluate.part)
        rows.append({"phase": phase.name, "rows": phase.rows, "batches": batches, "tokens": seen * length})
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
