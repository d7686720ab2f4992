"""Ray Data gives every worker its rows of every step, wherever the file's row groups end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.edge.conftest import ROOT

SCRIPT = """
import json, sys
import pyarrow as pa, pyarrow.parquet as pq
import ray
from rayrec.models.settings import ModelConfig
from rayrec.data import preferences, schema
from rayrec.models.policy import load_tokenizer
from rayrec.models.tiny import make_tiny
from rayrec.prompts import make_template
from rayrec.runs.storage import Storage
from rayrec.training.board import Phase
from rayrec.training.batches import read_shard

folder, batch = sys.argv[1], 32
titles = [f"The Return of Number {i}" for i in range(40)]
make_tiny(titles, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), f"{folder}/base", 0)
template = make_template("compact", load_tokenizer(f"{folder}/base"))
row = {"policy": None, "history": titles[:5], "history_ratings": None, "candidates": None, "chosen": titles[7]}
row |= {"rejected": [], "weight": 1.0, "scores": None, "smoothing": None, "neighbour": None, "step": 0, "slot": 0}
rows = pa.Table.from_pylist([row | {"example_id": f"e{i}"} for i in range(700)], schema=schema.PREFERENCES)
rows = preferences.arrange(rows.drop_columns(["step", "slot"]), batch, 1, 0, "t")
pq.write_table(rows, f"{folder}/rows.parquet", row_group_size=100)
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
phase = Phase("p", "sft", f"{folder}/rows.parquet", "", "", len(rows) // batch, batch, 0.0, 0, 0.0, 1)

@ray.remote(num_cpus=0)
class Worker:
    def read(self, rank, begun):
        tables = read_shard(phase, rank, 4, template, Storage(folder), begun)
        return [list(zip(one["step"].to_pylist(), one["slot"].to_pylist())) for one in tables]

workers = [Worker.remote() for _ in range(4)]
found = [ray.get([worker.read.remote(rank, begun) for rank, worker in enumerate(workers)]) for begun in (0, 13)]
print("\\n" + json.dumps(found), flush=True)
"""


def test_every_worker_reads_its_part_of_every_global_batch(tmp_path: Path) -> None:
    """From the first step on, and from a later one; there is one CPU for the tasks of four workers."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[[")]
    for begun, steps in ((0, found[0]), (13, found[1])):
        wanted = [[[[step, slot] for slot in range(8 * r, 8 * r + 8)] for step in range(begun, 22)] for r in range(4)]
        assert steps == wanted
