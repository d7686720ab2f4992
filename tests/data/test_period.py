"""Interactions between two moments."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrec.data import load, period
from rayrec.data.settings import DataConfig

DAY = 86_400


def write(folder: Path, days: int = 40) -> DataConfig:
    """One interaction a day of each of two users, from 1 January 2024 on."""
    begun = period.moment("since", "2024-01-01")
    rows = [f"u{u},i{(d + u) % 9},{begun + d * DAY + u}" for d in range(days) for u in range(2)]
    (folder / "interactions.csv").write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    (folder / "items.csv").write_text("\n".join(["item,title", *(f"i{i},Film {i}" for i in range(9))]) + "\n")
    return DataConfig(data=str(folder), history=3, min_history=1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", DAY),
        ("1970-01-02T00:00:01", DAY + 1),
        ("1970-01-02T01:00:00+01:00", DAY),
        ("86400", DAY),
        ("19700102", DAY),
    ],
)
def test_moments(text: str, seconds: int) -> None:
    assert period.moment("since", text) == seconds


@pytest.mark.parametrize("text", ["yesterday", "", "2024-13-01", "12.5.2024"])
def test_other_texts_are_no_moments(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--until .* is no moment. Take a date such as"):
        period.moment("until", text)


def test_only_what_lies_between_is_read_and_the_rest_is_counted(tmp_path: Path) -> None:
    config = write(tmp_path)
    whole = load(config)
    part = load(DataConfig(**{**vars(config), "since": "2024-01-06", "until": "2024-01-31"}))
    assert part.counts["interactions_before_since"] == 2 * 5 and part.counts["interactions_from_until"] == 2 * 10
    assert part.counts["rows_read"] == whole.counts["rows_read"] == 80
    times = [t for table in (part.train, part.valid, part.test) for t in table["timestamp"].to_pylist()]
    assert min(times) >= period.moment("since", "2024-01-06") and max(times) < period.moment("until", "2024-01-31")
    assert part.content_hash != whole.content_hash


def test_an_empty_period_names_the_one_that_is_there(tmp_path: Path) -> None:
    config = write(tmp_path)
    with pytest.raises(ValueError, match=r"^--since 2025-01-01: no interaction is left; they are from 2024-01-01T"):
        load(DataConfig(**{**vars(config), "since": "2025-01-01"}))
