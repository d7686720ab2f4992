"""The rows of a training phase, tokenised and dealt to the workers by Ray Data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayrec.board import Phase
from rayrec.prompts import Template
from rayrec.storage import Storage


def shard_rows(phase: Phase, workers: int, template: Template, storage: Storage) -> list:
    """Ray Data shards in which block ``step * workers + rank`` holds that worker's rows of that step.

    The splitter deals blocks in turn, so with blocks of batch / workers rows any number of workers reads the same
    global batches.
    """
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # The newer reader starts four processes to read the footer of this one file, at seconds for every phase.
    context.use_datasource_v2 = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    storage.keep(Path(phase.rows))
    rows = ray.data.read_parquet(**storage.for_ray_data(Path(phase.rows)))
    rows = rows.map_batches(
        Tokenise(phase.kind, template), batch_format="pyarrow", batch_size=None, zero_copy_batch=True
    )
    # Read tasks grow in number with the cluster, and only strict blocks do not end where theirs do.
    rows = rows.repartition(target_num_rows_per_block=phase.batch // workers, strict=True)
    return rows.streaming_split(workers, equal=True)


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
