"""The k-core of a log."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayrec.data import load, schema
from rayrec.data.core import k_core
from rayrec.data.settings import DataConfig


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60), st.integers(1, 5))
def test_the_core_is_what_is_left_when_who_has_too_few_goes(pairs: list[tuple[int, int]], k: int) -> None:
    rows = [{"user": f"u{u}", "title": f"t{t}", "rating": 1.0, "timestamp": n} for n, (u, t) in enumerate(pairs)]
    wanted, before = rows, None
    while wanted != before:
        before = wanted
        for name in ("user", "title"):
            met = [row[name] for row in wanted]
            wanted = [row for row in wanted if met.count(row[name]) >= k]
    log = pa.Table.from_pylist(rows, schema=schema.INTERACTIONS)
    if wanted:
        assert k_core(log, k).to_pylist() == wanted
    else:
        with pytest.raises(ValueError, match=f"--k-core {k} leaves none of {len(rows)} interactions"):
            k_core(log, k)


def test_a_dataset_of_the_core(tmp_path: Path) -> None:
    """Titles outside the core are no items either, and what is left out is counted."""
    lines = ["user,item,timestamp", *(f"u{u},i{i},{10 * i + u}" for u in range(6) for i in range(8)), "u0,rare,3"]
    (tmp_path / "interactions.csv").write_text("\n".join([*lines, "new,i1,4"]))
    titles = "\n".join(f"i{i},Title {i}" for i in range(8))
    (tmp_path / "items.csv").write_text(f"item,title\n{titles}\nrare,Rare\n")
    data = load(DataConfig(data=str(tmp_path), history=2, k_core=5))
    assert data.counts["interactions_outside_core"] == 2 and data.counts["items_outside_core"] == 1
    assert data.catalogue.titles == [f"Title {i}" for i in range(8)]
    assert "new" not in data.train["user"].to_pylist()
    assert load(DataConfig(data=str(tmp_path), history=2)).catalogue.titles[-1] == "Rare"
