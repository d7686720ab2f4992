"""Kept parts are whole, have the key of their request, and are left out where they are damaged."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from rayrec.data import schema
from rayrec.generation.parts import KeptParts
from rayrec.runs.manifest import CHECKPOINT
from rayrec.runs.storage import Storage


def outputs(*ids: str) -> pa.Table:
    rows = [
        {"example_id": i, "policy": "00/sft", "decode": "beams", "target": "A", "texts": ["B"], "logprobs": [-1.5]}
        for i in ids
    ]
    return pa.Table.from_pylist([row | {"titles": []} for row in rows], schema=schema.PREDICTIONS)


@pytest.fixture(params=["folder", "store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "copies"))
    return Storage(str(tmp_path / "runs") if request.param == "folder" else (tmp_path / "runs").as_uri())


def test_parts_are_kept_under_their_key_until_the_phase_ends(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = storage.root / "run" / "01" / "evaluate"
    parts = {3: outputs("a", "b"), 0: outputs("c"), 7: outputs("d", "e")}
    for key in ("one", "two"):
        kept = KeptParts(phase, key * 8, storage, every=1e-9)
        assert kept.load() == {}
        for number, table in parts.items():
            kept.add(number, table if key == "one" else table.slice(0, 1))
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "another machine"))
    elsewhere = Storage(storage.url or str(storage.root))
    there = elsewhere.root / "run" / "01" / "evaluate"
    found = KeptParts(there, "one" * 8, elsewhere, every=0).load()
    assert found.keys() == parts.keys() and all(found[number].equals(parts[number]) for number in parts)
    again = KeptParts(there, "one" * 8, elsewhere, every=1e-9)  # made twice: the same bits, counted once
    again.add(0, parts[0])
    again.add(5, outputs("f"))
    more = again.load()
    assert more.keys() == {0, 3, 5, 7} and len(more._rows) == 6 and more[7].equals(parts[7])
    damaged = there / CHECKPOINT / "oneoneon-0" / "outputs.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    if not storage.url:  # a store gives the file again
        assert KeptParts(there, "one" * 8, elsewhere, every=0).load().keys() == {3, 5, 7}


def test_parts_are_kept_every_so_often_or_never(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for every, wanted in ((0.0, set()), (3600.0, set()), (1e-9, {0, 1})):
        kept = KeptParts(tmp_path / "run" / str(every), "key" * 8, storage, every)
        kept.add(0, outputs("a"))
        kept.add(1, outputs("b"))
        assert kept.load().keys() == wanted and len(kept._new) == (2 if every == 3600 else 0)
