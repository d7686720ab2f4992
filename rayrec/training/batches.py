"""The rows of a training phase, tokenised and dealt to the workers by Ray Data."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayrec.prompts import Template
from rayrec.runs.storage import Storage
from rayrec.training.board import Phase

#: Bytes of a block of tokens: a worker's first rows are there once one is full.
_BLOCK = 1 << 22
#: Blocks that lie ready for a worker.
_AHEAD = 16


def read_shard(
    phase: Phase, rank: int, world: int, template: Template, storage: Storage, begun: int
) -> Iterable[pa.Table]:
    """One worker's rows of every step from ``begun`` on, a table a step: its slots of the global batch.

    Each worker has a stream of its own, in one task of Ray Data, which waits for no other worker's. All these tasks
    together take half a CPU, so none waits for another's room either, while their workers wait for each other.
    """
    import ray
    from ray.data import ExecutionResources
    from ray.data.expressions import col

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    # By itself every stream takes its share of the whole cluster's memory, as if it were the only one.
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=_AHEAD * _BLOCK)
    context.enable_progress_bars = False
    # The newer reader starts four processes to read the footer of this one file, at seconds for every phase.
    context.use_datasource_v2 = False
    context.target_max_block_size = _BLOCK
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    size, share = phase.batch // world, 1 / (2 * world)
    source = storage.for_ray_data(phase.rows)
    rows = ray.data.read_parquet(**source, partitioning=None, override_num_blocks=1, num_cpus=share)
    mine = (col("step") >= begun) & (col("slot") >= rank * size) & (col("slot") < (rank + 1) * size)
    tokenise = Tokenise(phase.kind, template)
    rows = rows.filter(expr=mine, num_cpus=share).map_batches(
        tokenise, batch_format="pyarrow", batch_size=None, zero_copy_batch=True, num_cpus=share
    )
    return rows.iter_batches(batch_size=size, batch_format="pyarrow", prefetch_batches=2)


@dataclass(frozen=True)
class Tokenise:
    """Turns text into token ids: ``prompt``, ``answers`` (the chosen one first), and the ``neighbour`` of KTO."""

    kind: str
    template: Template

    def __call__(self, table: Any) -> Any:
        prompts, answers, neighbours = [], [], []
        if self.kind != "pretrain":
            prompts = self.template.prompts(table)
        for row in table.select(["history", "chosen", "rejected", "neighbour"]).to_pylist():
            neighbours.append(None if row["neighbour"] is None else self.template.answer_ids(row["neighbour"]))
            if self.kind == "pretrain":
                prompt, answer = self.template.sequence_ids([*row["history"], row["chosen"]])
                prompts.append(prompt)
                answers.append([answer])
            else:
                answers.append([self.template.answer_ids(title) for title in (row["chosen"], *row["rejected"])])
        ids = pa.list_(pa.int32())
        kept = table.select(["example_id", "weight", "step", "slot", "scores", "smoothing"])
        kept = kept.append_column("prompt", pa.array(prompts, ids)).append_column(
            "neighbour", pa.array(neighbours, ids)
        )
        return kept.append_column("answers", pa.array(answers, pa.list_(ids)))
