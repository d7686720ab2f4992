"""Ray Data writes the token table of a phase, of which every worker reads its own rows of every step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.edge.conftest import ROOT

SCRIPT = """
import json, sys
import pyarrow as pa
import ray
from rayrec.models.settings import ModelConfig
from rayrec.data import preferences, schema
from rayrec.models.policy import load_tokenizer
from rayrec.models.tiny import make_tiny
from rayrec.prompts import make_template
from rayrec.runs.storage import Storage
from rayrec.training.board import Phase
from rayrec.training import batches

folder, batch = sys.argv[1], 32
titles = [f"The Return of Number {i}" for i in range(40)]
make_tiny(titles, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), f"{folder}/base", 0)
template = make_template("compact", load_tokenizer(f"{folder}/base"))
row = {"policy": None, "history": titles[:5], "history_ratings": None, "candidates": None, "chosen": titles[7]}
row |= {"rejected": [], "weight": 1.0, "scores": None, "smoothing": None, "neighbour": None}
row |= {"step": 0, "slot": 0}
rows = pa.Table.from_pylist([row | {"example_id": f"e{i}"} for i in range(700)], schema=schema.PREFERENCES)
rows = preferences.arrange(rows.drop_columns(["step", "slot"]), batch, 1, 0, "t")
batches._PART = 100  # rows of a file: three steps
batches.write_rows(rows, f"{folder}/rows.parquet", batch)
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
phase = Phase("p", "sft", f"{folder}/rows.parquet", "", f"{folder}/policy", len(rows) // batch, batch, 0.0, 0, 0.0, 1)

storage = Storage(folder)
batches.write_tokens(phase, template, storage, 60.0)
batches.write_tokens(phase, template, storage, 60.0)  # a second attempt replaces the table
whole = batches.Tokenise("sft", template)(rows)
step, slot = whole["step"].to_numpy(), whole["slot"].to_numpy()

def read(rank, world, begun):
    tables, size = list(batches.read_shard(phase, rank, world, storage, begun)), batch // world
    own = whole.filter(pa.array((step >= begun) & (slot >= rank * size) & (slot < (rank + 1) * size)))
    assert pa.concat_tables(tables).to_pylist() == own.to_pylist() and {len(one) for one in tables} == {size}
    return [list(zip(one["step"].to_pylist(), one["slot"].to_pylist())) for one in tables]

found = [[[read(rank, world, begun) for rank in range(world)] for begun in (0, 13)] for world in (1, 4, 32)]
print("\\n" + json.dumps(found), flush=True)
"""


def test_every_worker_reads_its_part_of_every_global_batch(tmp_path: Path) -> None:
    """From the first step on, and from a later one, whatever their number; the cluster has one CPU."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[[")]
    for world, of_world in zip((1, 4, 32), found, strict=True):
        for begun, steps in zip((0, 13), of_world, strict=True):
            slots = [range(32 // world * rank, 32 // world * (rank + 1)) for rank in range(world)]
            wanted = [[[[step, slot] for slot in own] for step in range(begun, 22)] for own in slots]
            assert steps == wanted
