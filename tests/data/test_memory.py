"""Logs are read as a stream: beyond some 100 MB a row takes 50 bytes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[2]
#: Rows, users and items of the file.
ROWS, USERS, ITEMS = 600_000, 10_000, 10_000

SCRIPT = """
import sys, threading, time
from pathlib import Path
from rayrec.data import load
from rayrec.data.settings import DataConfig

def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024

def watch():
    while not over.wait(0.002):
        most.append(memory())

load(DataConfig(data=sys.argv[1], history=2))  # threads and libraries take their own
before, most, over = memory(), [], threading.Event()
thread = threading.Thread(target=watch)
thread.start()
data = load(DataConfig(data=sys.argv[2]))
over.set()
thread.join()
print(max(most) - before, data.counts["rows_read"])
"""


def write(folder: Path, rows: int, ending: str) -> str:
    draw, names = np.random.default_rng(0), [f"A{n:09d}" for n in range(USERS)]
    items = pl.DataFrame({"item": [f"B{n:09d}" for n in range(ITEMS)]})
    items = items.with_columns(pl.format("The film {} of a long series (1999)", "item").alias("title"))
    plays = pl.DataFrame(
        {
            "user": [names[n] for n in draw.integers(0, min(USERS, max(1, rows // 60)), rows)],
            "item": items["item"][draw.integers(0, ITEMS, rows)],
            "rating": draw.integers(1, 11, rows) / 2,
            "timestamp": 1_400_000_000 + draw.integers(0, 200_000_000, rows),
        }
    )
    folder.mkdir()
    tables = {"items": items, "interactions": plays}
    if ending == "one table":
        tables = {"log": plays.join(items, on="item", maintain_order="left")}
    for name, table in tables.items():
        if ending == "csv":
            table.write_csv(folder / f"{name}.csv")
        else:
            table.write_parquet(folder / f"{name}.parquet")
    return str(folder)


@pytest.mark.parametrize("ending", ["csv", "one table"])
def test_a_large_log_is_read_in_little_memory(tmp_path: Path, ending: str) -> None:
    folders = [write(tmp_path / name, rows, ending) for name, rows in (("small", 60), ("large", ROWS))]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    peak, rows = map(float, done.stdout.split())
    assert rows == ROWS and peak < 150, f"{peak:.0f} MB"
