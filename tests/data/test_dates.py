"""Dates as programs for tables write them."""

from datetime import UTC, datetime

import polars as pl
import pytest

from rayrec.data import load
from rayrec.data.settings import DataConfig
from tests.data.test_log import checked

#: Two moments; as ISO has them, the first number of each date could be a day or a month.
EARLY, LATE = datetime(2025, 4, 5, 13, 7, tzinfo=UTC), datetime(2025, 5, 4, 1, 7, tzinfo=UTC)


def read(times: list[str], **more: str) -> tuple[list[int], dict[str, str], int]:
    """Seconds in order, what the plan tells, and the count of bad rows."""
    made, bad = checked({"timestamp": times}, **more)
    return made.table["timestamp"].to_pylist(), made.told, len(bad)


def seconds(*moments: datetime) -> list[int]:
    return [int(one.timestamp()) for one in moments]


@pytest.mark.parametrize(
    "form",
    [
        "%d.%m.%Y %H:%M",
        "%d.%m.%Y, %H:%M:%S",
        "%-d.%-m.%Y %-H:%M",
        "%d %b %Y %H:%M",
        "%-d %B %Y, %I:%M %p",
        "%d-%b-%Y %H:%M:%S",
        "%b %d, %Y %I:%M:%S %p",
        "%B %-d, %Y %-I:%M %p",
        "%a, %d %b %Y %H:%M:%S GMT",
        "%a, %d %b %Y %H:%M:%S +0000",
        "%Y-%m-%d %I:%M %p",
        "%Y/%m/%d %H:%M",
    ],
)
def test_forms_that_can_be_read_in_one_way(form: str) -> None:
    found, _, bad = read([f"{one:{form}}" for one in (LATE, EARLY)])
    assert found == seconds(EARLY, LATE) and not bad


@pytest.mark.parametrize("mark", ["/", "-"])
def test_a_number_above_twelve_shows_the_order_of_all_dates(mark: str) -> None:
    last = datetime(2025, 5, 30, tzinfo=UTC)
    for order, form in (("day", f"%d{mark}%m{mark}%Y"), ("month", f"%m{mark}%d{mark}%Y")):
        found, told, bad = read([f"{one:{form}}" for one in (LATE, EARLY, last)])
        days = [one.replace(hour=0, minute=0) for one in (EARLY, LATE, last)]
        assert found == seconds(*days) and told["timestamps"] == f"dates with the {order} first" and not bad
    american = [f"{one:%-m/%-d/%Y %-I:%M %p}" for one in (LATE, EARLY, last)]
    assert read(american)[0] == seconds(EARLY, LATE, last)


def test_dates_that_nothing_tells_apart_are_refused() -> None:
    times = [f"{one:%d/%m/%Y %H:%M}" for one in (LATE, EARLY)]
    with pytest.raises(
        ValueError, match=r"plays: dates such as '04/05/2025 01:07' .* no row shows which. Add --date-o"
    ):
        read(times)
    assert read(times, date_order="day")[0] == seconds(EARLY, LATE)
    assert read(times, date_order="month")[0] == seconds(LATE.replace(month=4, day=5), EARLY.replace(month=5, day=4))


def test_a_day_that_the_order_does_not_know_is_a_bad_row() -> None:
    found, told, bad = read(["30.05.2025", "31.05.2025", "05.30.2025", "32.01.2025", "29.02.2025"])
    assert bad == 3 and len(found) == 2 and told["timestamps"] == "dates with the day first"


def test_an_order_without_such_dates_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--date-order day reads dates .* most times of plays are no such dates"):
        read(["2025-05-30"], date_order="day")
    with pytest.raises(ValueError, match="--date-order month reads the dates of files, found none"):
        load(DataConfig(source="synthetic", date_order="month"))


@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String])
@pytest.mark.parametrize(("form", "told"), [("%Y%m%d%H%M", "minute (2024"), ("%Y%m%d%H%M%S", "second (2024")])
def test_numbers_that_are_dates_with_a_time(form: str, told: str, kind: pl.DataType) -> None:
    times = pl.Series([int(f"{one:{form}}") for one in (LATE, EARLY)]).cast(kind)
    found, about, bad = read(times)  # pyright: ignore[reportArgumentType]
    assert found == seconds(EARLY, LATE) and told in about["timestamps"] and not bad
