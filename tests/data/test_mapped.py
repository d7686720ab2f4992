"""Tables in files hold the same rows, leave nothing behind and take no memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data import mapped

ROOT = Path(__file__).parents[2]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=6), st.data())
def test_rows_are_those_of_plain_tables(sizes: list[int], data: st.DataObject) -> None:
    texts, kind = iter(range(1000)), pa.schema([("text", pa.string()), ("list", pa.list_(pa.string()))])
    parts = [
        pa.table({"text": [str(next(texts)) for _ in range(n)], "list": [["a"] * (i % 3) for i in range(n)]}, kind)
        for n in sizes
    ]
    whole = pa.concat_tables([kind.empty_table(), *parts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "SLICE", 2)
        patch.setattr(mapped, "CHUNK", 4)
        table = mapped.mapped(iter(parts), whole.schema)
        assert table.equals(whole) and all(len(chunk) <= 4 for chunk in table["text"].chunks)
        assert pa.concat_tables([whole.slice(0, 0), *mapped.slices(table)]).equals(whole)
        numbers = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=12)) if len(whole) else [], int)
        assert mapped.take(table, numbers).to_pylist() == whole.take(pa.array(numbers)).to_pylist()
        shorter = mapped.each(table, lambda some: some.slice(1))
        assert len(shorter) == sum(len(some) - 1 for some in mapped.slices(whole))


def test_the_files_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[Path] = []

    def made() -> Iterator[pa.Table]:
        for start in range(0, 3 * mapped.CHUNK, mapped.CHUNK):
            yield pa.table({"a": range(start, start + mapped.CHUNK)})
            seen.extend(tmp_path.iterdir())  # nor while rows are still to come, which may take hours

    table = mapped.mapped(made(), pa.schema([("a", pa.int64())]))
    assert not [*seen, *tmp_path.iterdir()] and table["a"].to_pylist() == list(range(3 * mapped.CHUNK))


SCRIPT = """
import numpy as np, pyarrow as pa
from pathlib import Path
from rayrec.data import preferences, schema
from rayrec.data.dataset import content_hash, numbered
from rayrec.data.mapped import SLICE, mapped, slices

def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024

def examples():
    for start in range(0, rows, SLICE):
        row = {"split": "train", "user": "u", "timestamp": 0, "history": ["A title of some length (1999)"] * 10,
               "target": "Another one", "history_ratings": None, "target_rating": None, "candidates": None}
        made = [row | {"example_id": f"train-{i}"} for i in range(start, min(rows, start + SLICE))]
        yield pa.Table.from_pylist(made, schema=schema.EXAMPLES)

def negatives(some):
    row = {"policy": "p", "k": 0, "sampler": "random", "text": "A rejected title", "raw": None, "logprob": None}
    made = [row | {"example_id": one} for one in some["example_id"].to_pylist()]
    return preferences.with_numbers(pa.Table.from_pylist(made, schema=schema.NEGATIVES), some)

rows, before = 24 * SLICE, memory()
train = numbered(mapped(examples(), schema.EXAMPLES))
content_hash(train)
drawn = preferences.draw(train, 0, rows, 0, "iterations")
pairs = preferences.pairs(drawn, map(negatives, slices(preferences.distinct(drawn))))
table = preferences.arrange(pairs, 32, 1, 0, "t")
held = sum(one.nbytes for one in (train, drawn, pairs, table)) / 2**20
print(held, memory() - before, len(table))
"""


def test_what_grows_with_the_rows_lies_in_files() -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    held, memory, rows = map(float, done.stdout.split())
    assert rows == 24 * mapped.SLICE and held > 300 and memory < held / 2, (held, memory)


@pytest.mark.parametrize("length", [0, 1, 7, 10**5])
def test_numbers_in_files_are_those_in_memory(length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert (mapped.array(length, bool) == np.zeros(length, bool)).all()
    numbers = mapped.ascending(length)
    assert numbers.dtype == np.int32 and (numbers == np.arange(length)).all() and not list(tmp_path.iterdir())


@given(st.lists(st.lists(st.text(max_size=3), max_size=5), max_size=5))
def test_texts_are_numbered_across_chunks_in_the_order_of_the_column(chunks: list[list[str]]) -> None:
    code, known = mapped.coded(pa.chunked_array([pa.array(chunk, pa.string()) for chunk in chunks], pa.string()))
    texts = [text for chunk in chunks for text in chunk]
    assert known.to_pylist() == [*dict.fromkeys(texts)]
    assert [known[int(number)].as_py() for number in code] == texts


FULL = [
    "mapped((pa.table({'a': range(10**4)}) for _ in range(9)), pa.schema([('a', pa.int64())]))",
    "ascending(10**5)",
]


@pytest.mark.parametrize("call", FULL)
def test_a_full_disk_is_told_with_its_folder(call: str) -> None:
    script = (
        "import pyarrow as pa, resource, signal\n"
        "from rayrec.data.mapped import ascending, mapped\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\n"
        f"{call}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("OSError: [Errno 27] File too large: ") and last.endswith("Point TMPDIR to a larger disk")
