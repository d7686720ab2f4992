"""Interactions as people have them: times, ratings and duplicates."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data import load, log
from rayrec.data.likings import liking_rows
from rayrec.data.settings import DataConfig
from rayrec.data.sources.reading import Log, Rejects

CATALOGUE = pl.DataFrame({"item": list("abcdef"), "title": list("ABCDEF"), "genres": [[]] * 6})


def checked(columns, **more):
    """The log of one user, read."""
    rows = len(next(iter(columns.values())))
    frame = pl.DataFrame({"row": range(rows), "user": ["u"] * rows, "item": list("abcdef")[:rows]} | columns)
    rejects = Rejects()
    return log.check(Log(frame, CATALOGUE, "plays"), rejects, **more), rejects.table()


def order(times):
    made, bad = checked({"timestamp": times})
    assert not len(bad)
    return "".join(made.table["title"].to_pylist()), made.table["timestamp"].to_pylist()


START = datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)  # 1,600,000,000 seconds
STEPS = [300, 0, 200, 100]  # of a unit: rows B D C A in order


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_one_second_order_rows_by_their_fraction(unit, zone):
    size = {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = pl.Series([1_600_000_000 * size + step for step in STEPS], dtype=pl.Int64)
    typed = times.cast(pl.Datetime(unit, "UTC" if zone else None))
    typed = typed.dt.convert_time_zone(zone) if zone else typed
    assert order(typed) == order(times) == order(times.cast(pl.String)) == ("BDCA", [1_600_000_000] * 4)


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([1_600_000_000 + step / 1000 for step in STEPS]),
        pl.Series([Decimal(1_600_000_000 * 1000 + step) / 1000 for step in STEPS]),
        # 16 digits behind the point are more than a float has
        [f"1600000000.{step:016d}" for step in STEPS],
        [(START + timedelta(milliseconds=step)).isoformat() for step in STEPS],
        [f"{START + timedelta(milliseconds=step):%Y-%m-%d %H:%M:%S.%f}" for step in STEPS],
        [f"2020-09-13T08:26:40.{step:09d}-04:00" for step in STEPS],
        [f"2020-09-13 12:26:40.{step:03d}Z" for step in STEPS],
        [f" 2020-09-13T14:26:40.{step:03d}+02 " for step in STEPS],
        [f"2020-09-13 12:26:40.{step:03d} UTC" for step in STEPS],
        [f"2020/09/13 12:26:40.{step:03d}" for step in STEPS],
    ],
    ids=["floats", "decimals", "text", "iso", "spaces", "zone", "z", "hours", "utc", "slashes"],
)
def test_times_in_other_forms(times):
    assert order(times) == ("BDCA", [1_600_000_000] * 4)


def test_dates_and_times_before_the_epoch():
    assert order([date(1970, 1, 3), date(1969, 12, 31), date(1970, 1, 2)]) == ("BCA", [-86400, 86400, 172800])
    assert order(["1970-01-03", "1969-12-31", "1970-01-01 00:01"]) == ("BCA", [-86400, 60, 172800])
    half = pl.Series([-500, 500, -1500]).cast(pl.Datetime("ms"))
    assert order(half) == ("CAB", [-2, -1, 0])
    assert order([-0.5, 0.5, -1.5]) == ("CAB", [-2, -1, 0])


def test_equal_times_keep_the_order_of_the_file_and_bad_ones_are_set_aside():
    assert order([5, 4, 5, 4]) == ("BDAC", [4, 4, 5, 5])
    made, bad = checked({"timestamp": ["1", "01/02/2020", "2020-13-01", "", None]})
    assert made.table["title"].to_pylist() == ["A"]
    assert set(bad["reason"].to_pylist()) == {"timestamp is not a number of seconds or a date"}


@pytest.mark.parametrize(
    ("ratings", "stars", "told"),
    [
        ([0, 1, 1], [1, 5, 5], "0 and 1: 1 counts as liked (5 stars), 0 as disliked (1 star)"),
        ([False, True, None], [1, 5, None], "0 and 1: 1 counts as liked"),
        (["false", "TRUE", ""], [1, 5, None], "0 and 1: 1 counts as liked"),
        ([-1, 1, 1], [1, 5, 5], "-1 to 1: 1 counts as liked (5 stars), -1 as disliked"),
        ([-1, 0, 1], [1, 3, 5], "-1 to 1: 1 counts"),
        (["1", "3.5", "5"], [1, 3.5, 5], "1 to 5, stars: 4 and more count as liked, 2 and less as disliked"),
        ([1, 6, 10], [0.5, 3, 5], "1 to 10, taken as 0 to 10, two to a star: 8 and more count as liked"),
        ([1, 300, 7], [None] * 3, "1 to 300, no known scale: rows count as unrated. --liked-from says"),
        ([-10.0, 3.5, 10.0], [None] * 3, "-10 to 10, no known scale"),
        ([1, 1, 1], [None] * 3, "all are 1, which says nothing"),
        ([None, None, None], [None] * 3, "none"),
    ],
)
def test_scales_are_found_and_told(ratings, stars, told):
    made, bad = checked({"timestamp": [1, 2, 3], "rating": ratings})
    assert made.table["rating"].to_pylist() == stars
    assert made.told["ratings"].startswith(told)
    assert not len(bad)
    assert made.counts.get("rows_unrated", 0) == stars.count(None)


def test_a_single_value_outside_is_a_fault_of_its_row():
    for column, reason in (
        ([0.0, 1.0] * 100 + [2.0], "rating is not 0 or 1"),
        ([1.0, 5.0] * 100 + [50.0], "rating is not in 0 to 5"),
        ([1.0, 9.0] * 100 + [np.inf], "rating is not in 0 to 10"),
    ):
        count = len(column)
        frame = pl.DataFrame({"row": range(count), "user": "u", "item": "a", "timestamp": range(count)})
        rejects = Rejects()
        made = log.check(Log(frame.with_columns(rating=pl.Series(column)), CATALOGUE, "plays"), rejects)
        assert rejects.table()["reason"].to_pylist() == [reason]
        assert len(made.table) == count - 1


def test_liked_from_sets_the_border():
    def stars(ratings, least):
        made, bad = checked({"timestamp": range(len(ratings)), "rating": ratings}, liked_from=least)
        assert not len(bad) and f"{least:g} and more count as liked" in made.told["ratings"]
        return made.table["rating"].to_pylist()

    assert stars([1, 49, 50, 300], 50) == [1, 2.5, 4, 5]
    assert stars([1, 50, 1_234_564], 50) == [1, 4, 5]  # no digit of an end is lost
    assert stars([0.1234567, 7.5, 20.0], 5) == [1, 4, 5]
    assert stars([1, 2, 3, 4, 5], 3) == [1.5, 2, 4, 4.5, 5]
    assert stars([1, 2, 3, 4, 5], 4) == [1, 2, 3, 4, 5]
    assert stars([2, 5, 8, 10], 8) == [1, 2.5, 4, 5]
    for least in (0, 1, 6):
        with pytest.raises(
            ValueError, match=f"--liked-from {least}: the ratings are from 1 to 5. Take a value above 1"
        ):
            checked({"timestamp": [1, 2], "rating": [1, 5]}, liked_from=least)
    with pytest.raises(ValueError, match="--liked-from 7: all ratings are 7, and no value divides"):
        checked({"timestamp": [1, 2], "rating": [7, 7]}, liked_from=7)
    with pytest.raises(ValueError, match="--liked-from 3 reads ratings, and plays has none"):
        checked({"timestamp": [1]}, liked_from=3)
    with pytest.raises(ValueError, match="--liked-from 3 reads the ratings of files"):
        load(DataConfig(liked_from=3))


@pytest.mark.parametrize("whole", [True, False])
def test_duplicates_are_found_across_slices(whole, monkeypatch):
    monkeypatch.setattr(log, "_SLICE", 4)  # equal times are longer than a slice
    draw = np.random.default_rng(0)
    columns = {
        "user": draw.choice(["u", "v"], 200),
        "item": draw.choice([*"abc"], 200),
        "rating": draw.integers(1, 4, 200),
    }
    part = (np.arange(200) >= 100) * draw.integers(0, 2, 200) / 4  # the first slices have whole times alone
    columns |= {"timestamp": 1_600_000_000 + draw.integers(0, 10, 200) + (0 if whole else part)}
    made, bad = checked(columns)
    rows = sorted(zip(*(columns[name].tolist() for name in columns), strict=True), key=lambda row: row[3])
    wanted = [(user, item.upper(), rating, int(time)) for user, item, rating, time in dict.fromkeys(rows)]
    assert [tuple(row.values()) for row in made.table.to_pylist()] == wanted and not len(bad)
    assert made.counts["duplicate_rows_dropped"] == 200 - len(wanted) > 20


def test_equal_rows_are_counted_and_kept_once():
    frame = pl.DataFrame(
        {
            "row": range(6),
            "user": ["u", "u", "v", "u", "u", "u"],
            "item": ["a", "a", "a", "b", "a", "a"],
            "rating": [5, 5, 5, 5, 4, 5],
            "timestamp": [1.5, 1.5, 1.5, 1.5, 1.5, 1.25],
        }
    )
    made = log.check(Log(frame, CATALOGUE, "plays"), Rejects())
    assert made.counts == {"duplicate_rows_dropped": 1}
    assert made.table["title"].to_pylist() == ["A", "A", "A", "B", "A"]
    assert made.table["rating"].to_pylist() == [5, 5, 5, 5, 4]
    assert made.told["duplicates"].startswith("1 rows are equal to an earlier one")
    kept = log.check(Log(frame, CATALOGUE, "plays"), Rejects(), "keep")
    assert len(kept.table) == 6 and kept.counts == {"duplicate_rows_kept": 1}
    with pytest.raises(ValueError, match="--duplicates keep reads the interactions of files, found none"):
        load(DataConfig(duplicates="keep"))


def test_the_embedded_data_has_no_equal_rows():
    made = load(DataConfig(split="leave_last_two", valid_rows=10**6, test_rows=10**6))
    assert made.counts["rows_read"] > 20_000 and not any("duplicate_rows" in name for name in made.counts)
    for rows in (made.train, made.valid, made.test):
        pairs = list(
            zip(rows["user"].to_pylist(), rows["timestamp"].to_pylist(), rows["target"].to_pylist(), strict=True)
        )
        assert len(set(pairs)) == len(pairs)


def small(folder, ratings, twice=False):
    """Eight plays of each of two users, by leave-last-two."""
    rows = [(user, str(1 + n % 4), n, ratings[n % len(ratings)]) for user in "uv" for n in range(8)]
    users, items, times, stars = zip(*(rows * (1 + twice)), strict=True)
    folder.mkdir()
    pq.write_table(
        pa.table({"user": users, "item": items, "timestamp": times, "rating": stars}), folder / "interactions.parquet"
    )
    pq.write_table(pa.table({"item": list("1234"), "title": list("ABCD")}), folder / "items.parquet")
    return DataConfig(data=str(folder), split="leave_last_two")


def test_every_row_of_a_doubled_file_is_accounted_for(tmp_path):
    once, twice = load(small(tmp_path / "one", [1, 5])), load(small(tmp_path / "two", [1, 5], twice=True))
    assert once.content_hash == twice.content_hash
    assert (twice.counts["rows_read"], twice.counts["duplicate_rows_dropped"]) == (32, 16)
    assert twice.told["duplicates"].startswith("16 rows")


def test_thumbs_are_liked_and_disliked(tmp_path):
    made = load(small(tmp_path / "thumbs", [0, 1]))
    asked = liking_rows(made.test, {}, made.catalogue, 0).to_pylist()
    assert [row["target"] for row in asked] == ["Yes", "Yes"]  # the eighth play has rating 1
    assert made.test["history_ratings"].to_pylist() == [[1, 5, 1, 5, 1, 5, 1]] * 2


def test_titles_that_unicode_calls_equal_are_one_item(tmp_path):
    folder, titles = tmp_path / "nfc", ["Amélie", "Ame\u0301lie", "B"]
    config = small(folder, [5])
    pq.write_table(pa.table({"item": list("1234"), "title": [*titles, "C"]}), folder / "items.parquet")
    made = load(config)
    assert made.catalogue.titles == ["Amélie", "B", "C"] and made.counts["duplicate_titles"] == 1
    assert {title for row in made.test.to_pylist() for title in row["history"]} <= {"Amélie", "B", "C"}


@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String])
def test_numbers_that_are_dates_are_read_as_dates(kind):
    days = pl.Series([20200229, 20191231, 20200101, 20200131]).cast(kind)
    made, bad = checked({"timestamp": days})
    assert not len(bad) and "dates" in made.told["timestamps"]
    wanted = [datetime(*day, tzinfo=UTC) for day in ((2019, 12, 31), (2020, 1, 1), (2020, 1, 31), (2020, 2, 29))]
    assert made.table["timestamp"].to_pylist() == [int(day.timestamp()) for day in wanted]
    assert "timestamps" not in checked({"timestamp": [20200229, 20191231, 20200101, 20201331]})[0].told  # seconds


@pytest.mark.parametrize("kind", [pl.String, pl.Datetime("us"), pl.Datetime("ms"), pl.Datetime("us", "Etc/GMT-9")])
def test_dates_of_any_year_are_in_order(kind):
    """9999-12-31 and 0001-01-01 stand for no date in many databases; 64 bits of nanoseconds end in 1677 and 2262."""
    years = pl.Series([2023, 9999, 1, 2300, 1969, 1600])
    days = pl.select(pl.datetime(years, 12, 31, 23, 59, 59, 500_000, time_unit="us")).to_series()
    zone = getattr(kind, "time_zone", None)
    times = days.dt.strftime("%Y-%m-%d %H:%M:%S%.f") if kind == pl.String else days.dt.replace_time_zone(zone)
    made, bad = checked({"timestamp": times.cast(kind)})
    moments = [datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC) for year in sorted(years)]
    early = 9 * 3600 if zone else 0
    wanted = [(moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1) - early for moment in moments]
    assert not len(bad) and made.table["timestamp"].to_pylist() == wanted


@pytest.mark.parametrize(("other", "size", "unit"), [(1, 1000, "milliseconds"), (1000, 1, "seconds")])
def test_a_time_in_another_unit_than_most_is_a_bad_row(other, size, unit):
    times = [(1_600_000_000 + n) * size for n in range(4)] + [1_600_000_000 * other, 0]
    made, bad = checked({"timestamp": times})
    assert made.table["timestamp"].to_pylist() == [0, *(1_600_000_000 + n for n in range(4))]
    assert bad["reason"].to_pylist() == [f"timestamp is not in {unit}, as most are"]
    assert bad["row"].to_pylist() == [4]


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NaN", "null", "None", "\\N", "-", " "])
def test_words_for_no_rating_are_unrated(word):
    made, bad = checked({"timestamp": range(6), "rating": [word, "3", "4.5", word, "5", "1"]})
    assert not len(bad) and made.counts == {"rows_unrated": 2}
    assert made.table["rating"].to_pylist() == [None, 3, 4.5, None, 5, 1]


def test_decimal_commas_and_words_are_ratings():
    made, bad = checked({"timestamp": range(5), "rating": ["0,5", "4,25", "3", "2.5", "1,234"]})
    assert made.table["rating"].to_pylist() == [0.5, 4.25, 3, 2.5]
    assert bad["reason"].to_pylist() == ["rating is not a number"]  # a thousand, or a little more than one
    made, _ = checked({"timestamp": range(6), "rating": ["yes", "No", "y", "n", "T", "false"]})
    assert made.table["rating"].to_pylist() == [5, 1, 5, 1, 5, 1]
