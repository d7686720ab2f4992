"""The interactions of a source: checked, rated in stars, in order of time, each once."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from rayrec.data import dates, mapped, scale, schema
from rayrec.data.settings import DateOrder
from rayrec.data.sources.reading import Log, Rejects, first_case, ids

#: Rows whose columns are converted at once: intermediate columns take a hundred bytes a row.
_SLICE = 1 << 17
#: Seconds since the epoch are below 1e11 until the year 5138.
_UNITS = {"seconds": 0.0, "milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17, "": 1e20}
#: Seconds of 1973; smaller numbers may be places, or moments that were never set.
_EARLY = 1e8
#: Numbers that are dates, by their name: the form, the least and the greatest.
_DATES = {
    "dates as year, month and day (20240131)": ("%Y%m%d", 19000101, 21001231),
    "dates with hour and minute (202401312359)": ("%Y%m%d%H%M", 190001010000, 210012312359),
    "dates with hour, minute and second (20240131235959)": ("%Y%m%d%H%M%S", 19000101000000, 21001231235959),
}
_ISO = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y-%m-%d %I:%M:%S %p", "%Y-%m-%d %I:%M %p")
_ZONE = r"\s*(?:Z|[+-]\d\d:?\d\d)$"
#: Texts of a rating, in lower case, that stand for none.
_NONE = ("", "na", "n/a", "nan", "null", "none", "\\n", "-")
_YES, _NO = ("true", "t", "yes", "y"), ("false", "f", "no", "n")


class Checked(NamedTuple):
    """Interactions by ``schema.INTERACTIONS``, counts of rows, and what the plan tells about the columns."""

    table: pa.Table
    counts: dict[str, int]
    told: dict[str, str]


def check(
    log: Log,
    rejects: Rejects,
    duplicates: str = "drop",
    liked_from: float | None = None,
    date_order: DateOrder | None = None,
) -> Checked:
    """Return the good rows of ``log`` and set the others aside.

    Rows are in order of time at its full precision, equal times in file order; times are cut to seconds then. Of rows
    that are equal in user, item, rating and time the first is kept, or all with ``duplicates`` "keep". ``liked_from``
    is described at :func:`rayrec.data.scale.of`, ``date_order`` at :func:`rayrec.data.dates.first_of`.
    """
    rated = "rating" in log.frame.columns
    if not rated and liked_from is not None:
        raise ValueError(f"--liked-from {liked_from:g} reads ratings, and {log.file} has none. Leave it out.")
    if not len(log.frame) and not rejects:
        raise ValueError(f"{log.file}: found no interaction, wanted rows below the header. Name another file.")
    parts = [*log.frame.iter_slices(_SLICE)] or [log.frame]
    kind = log.frame.schema["rating"] if rated else pl.Null()
    found = scale.of((part.select(_number(kind)).to_series() for part in parts if rated), liked_from)
    log.frame = log.frame.clear()  # so that a part ends when it is checked
    unit, told = _unit(parts), {"ratings": found.told} if rated else {}
    if unit:
        told["timestamps"] = unit if unit in _DATES else f"in {unit}"
    first = dates.first_of(_texts(parts), date_order, log.file)
    if first:
        told["timestamps"] = f"dates with the {first} first"
    checked = []
    while parts:
        checked.append(_compact(_checked(parts.pop(0), log, rejects, found, unit, first)))
    good = pl.concat(checked, how="diagonal").with_columns(pl.col("^part$").fill_null(0))
    del checked
    unrated, counts, order = good["rating"].null_count(), {}, _order(good)
    if rated and unrated:
        counts["rows_unrated"] = unrated
    again = _again(good, order)
    if count := int(again.sum()):
        kept = duplicates == "keep"
        counts["duplicate_rows_kept" if kept else "duplicate_rows_dropped"] = count
        order = order if kept else order[~again]
        did = "all kept" if kept else "each kept once; --duplicates keep keeps all"
        told["duplicates"] = f"{count:,} rows are equal to an earlier one in user, item, rating and time: {did}"
    del again

    def ordered() -> Iterator[pa.Table]:
        for start in range(0, len(order), mapped.SLICE):
            some = good[order[start : start + mapped.SLICE]].select("user", "title", "rating", "timestamp")
            some = some.with_columns(pl.col("user", "title").cast(pl.String))
            yield schema.check(some.to_arrow(), schema.INTERACTIONS, log.file)

    return Checked(mapped.mapped(ordered(), schema.INTERACTIONS), counts, told)


def _compact(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with every name in memory once, and without ``part`` where all times are whole."""
    frame = frame.with_columns(pl.col("user", "item", "title").cast(pl.Categorical))
    return frame if (frame["part"] != 0).any() else frame.drop("part")


def _order(good: pl.DataFrame) -> np.ndarray:
    """The rows by time, equal times in file order, (N,)."""
    time = good["timestamp"].to_numpy()
    if "part" not in good.columns:
        order = np.argsort(time, kind="stable")
    else:
        order = np.lexsort((good["part"].to_numpy(), time))
    return mapped.filled(len(order), [order], np.uint32)


def _again(good: pl.DataFrame, order: np.ndarray) -> np.ndarray:
    """Which rows in the ``order`` of time are equal to an earlier one in user, item, rating and time, (N,).

    Rows without a user's own time have their place as time, and no two are equal.
    """
    again, start = np.zeros(len(order), bool), 0
    time = good["timestamp"].to_numpy()
    while start < len(order):
        end = min(start + _SLICE, len(order))
        end = bisect_right(range(len(order)), time[order[end - 1]], end, key=lambda row: time[order[row]])
        rows = good[order[start:end]].select(pl.exclude("title").to_physical())
        again[start:end] = ~rows.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
        start = end
    return again


def _number(kind: pl.DataType) -> pl.Expr:
    """The ratings as numbers, booleans too; null where there is none, or where it is no number."""
    rating = pl.col("rating")
    if kind == pl.Categorical:
        rating, kind = rating.cast(pl.String), pl.String()
    if kind == pl.String:
        text = rating.str.strip_chars().str.to_lowercase()
        text = pl.when(text.is_in(_NONE)).then(None).otherwise(text)
        rating = pl.when(text.is_in(_YES)).then(pl.lit("1")).when(text.is_in(_NO)).then(pl.lit("0")).otherwise(text)
        rating = rating.str.replace(r"^([+-]?\d+),(\d\d?)$", "${1}.${2}")  # three digits may be thousands
    number = rating.cast(pl.Float64, strict=False)
    return number.fill_nan(None) if kind.is_float() else number  # pandas' empty cells in Parquet


def _text(frame: pl.DataFrame) -> pl.DataFrame:
    """Decimals and categories as text, whose every digit counts; text without space around it."""
    kind = frame.schema["timestamp"]
    if kind.is_integer() or kind.is_float() or kind.is_temporal():
        return frame
    return frame.with_columns(pl.col("timestamp").cast(pl.String).str.strip_chars())


def _texts(parts: Sequence[pl.DataFrame]) -> Iterator[pl.Series]:
    """The times of parts whose column holds texts."""
    for part in parts:
        times = _text(part.select("timestamp"))["timestamp"]
        if times.dtype == pl.String:
            yield times


def _unit(parts: Sequence[pl.DataFrame]) -> str | None:
    """The unit of most numbers, seconds as None; or the dates that all of them are."""
    if parts[0].schema["timestamp"].is_temporal():
        return None
    rows, reached, forms = 0, dict.fromkeys(_UNITS, 0), {*_DATES}
    for part in parts:
        times = _text(part.select("timestamp"))["timestamp"].cast(pl.Float64, strict=False).fill_nan(None).drop_nulls()
        rows += len(times)
        for unit, least in _UNITS.items():
            reached[unit] += int((times >= least).sum())
        forms -= {form for form in forms if not _are_dates(times, form)}
    if not rows:
        return None
    if forms:
        return forms.pop()
    found = [unit for unit in _UNITS if 2 * reached[unit] >= rows]
    return found[-1] if len(found) > 1 else None


def _are_dates(times: pl.Series, form: str) -> bool:
    """Whether all numbers are dates of a form."""
    _, least, most = _DATES[form]
    if not times.is_between(least, most).all():
        return False
    return _read_dates(times.cast(pl.Int64, strict=False), form).null_count() == 0


def _read_dates(numbers: Any, form: str) -> Any:
    """Moments of numbers such as 20240131, a column of polars; null where there is no such day."""
    return numbers.cast(pl.String).str.to_datetime(_DATES[form][0], time_unit="ms", strict=False)


def _times(frame: pl.DataFrame, unit: str | None, first: DateOrder | None) -> pl.DataFrame:
    """Add ``whole``, seconds since the epoch rounded down, and ``part``, their fraction in a unit of the column's.

    ``odd`` tells whether a number is in another unit than most.
    """
    time, kind = pl.col("timestamp"), frame.schema["timestamp"]
    if kind.is_temporal():
        whole, part = time.dt.epoch("s"), pl.lit(0)
        if isinstance(kind, pl.Datetime):  # dt.epoch rounds towards the epoch, and nanoseconds end in 2262
            size = {"ns": 10**9, "us": 10**6, "ms": 10**3}[kind.time_unit]
            whole, part = time.to_physical() // size, (time.to_physical() % size) * (10**9 // size)
        frame = frame.with_columns(pl.lit(False).alias("odd"), whole.alias("whole"))
        return frame.with_columns(part.cast(pl.Float64).alias("part"))
    seconds = time.cast(pl.Float64, strict=False)
    whole = seconds.floor().cast(pl.Int64, strict=False)
    whole = whole if kind.is_float() else pl.coalesce(time.cast(pl.Int64, strict=False), whole)
    if unit in _DATES:
        moments = _read_dates(whole, unit).dt.epoch("s")
        return frame.with_columns(moments.alias("whole"), pl.lit(0.0).alias("part"), pl.lit(False).alias("odd"))
    at = [*_UNITS].index(unit or "seconds")
    least, most = [*_UNITS.values()][at : at + 2]
    odd = (seconds >= most) | ((seconds >= _EARLY) & (seconds < least))
    frame = frame.with_columns(odd.fill_null(False).alias("odd"))
    if unit:
        size = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}[unit]
        part = (whole % size).cast(pl.Float64) + (seconds - seconds.floor())
        return frame.with_columns((whole // size).alias("whole"), part.alias("part"))
    part = seconds - seconds.floor()
    if kind == pl.String:
        digits = time.str.extract(r"^\s*\d+(\.\d+)\s*$")
        part = pl.coalesce(("0" + digits).cast(pl.Float64), part)
    frame = frame.with_columns(whole.alias("whole"), part.alias("part"))
    if kind == pl.String and frame["whole"].null_count():
        plain = dates.iso(time, first).str.replace(r"\s*(?:UTC|GMT)$", "Z").str.replace("T", " ", literal=True)
        plain = plain.str.replace(r"^(\d{4})/(\d\d)/", "${1}-${2}-")
        plain = plain.str.replace(r"(:\d\d(?:\.\d+)?)\s*([+-]\d\d)$", "${1}${2}00")
        zone = plain.str.extract(f"({_ZONE})").str.strip_chars().str.replace("Z", "+0000").str.replace(":", "")
        ahead = zone.str.slice(1, 2).cast(pl.Int64) * 3600 + zone.str.slice(3, 2).cast(pl.Int64) * 60
        ahead = pl.when(zone.str.starts_with("-")).then(-ahead).otherwise(ahead).fill_null(0)
        bare = plain.str.replace(_ZONE, "")
        read = pl.coalesce(bare.str.to_datetime(form, time_unit="us", strict=False) for form in _ISO)
        digits = bare.str.extract(r":\d\d\.(\d{1,9})").str.pad_end(9, "0").fill_null("0")  # nanoseconds end in 2262
        frame = frame.with_columns(
            pl.coalesce("whole", read.dt.epoch("us") // 10**6 - ahead).alias("whole"),
            pl.coalesce("part", digits.cast(pl.Float64)).alias("part"),
        )
    return frame


def _checked(
    frame: pl.DataFrame,
    log: Log,
    rejects: Rejects,
    found: scale.Scale,
    unit: str | None,
    first: DateOrder | None,
) -> pl.DataFrame:
    """The good rows of some: user, item, title, rating (stars), timestamp (whole seconds), part."""
    show = [name for name in ("user", "item", "rating", "timestamp") if name in frame.columns]
    rated = "rating" in show
    number = _number(frame.schema["rating"]) if rated else pl.lit(None, pl.Float64)
    empty = pl.lit(not rated)
    if rated:
        empty = pl.col("rating").is_null()
        empty |= pl.col("rating").cast(pl.String).str.strip_chars().str.to_lowercase().is_in(_NONE)
        empty |= number.is_null() if frame.schema["rating"].is_float() else pl.lit(False)
    frame = (
        _times(_text(frame), unit, first)
        .with_columns(ids(frame, "user", "item"))
        .join(log.catalogue.select("item", "title"), on="item", how="left", maintain_order="left")
        .with_columns(number.alias("number"), empty.alias("empty"))
    )
    inside = pl.col("number").is_between(found.low, found.high)
    inside = inside & pl.col("number").is_in([0.0, 1.0]) if found.name == "0 or 1" else inside
    reason = first_case(
        (pl.col("user").fill_null("") == "", "no user id"),
        (pl.col("title").is_null(), log.unknown),
        (~pl.col("empty") & (pl.col("number").is_null() | pl.col("number").is_nan()), "rating is not a number"),
        (~pl.col("empty") & ~inside, f"rating is not {'in ' if ' to ' in found.name else ''}{found.name}"),
        (pl.col("whole").is_null(), "timestamp is not a number of seconds or a date"),
        (pl.col("odd"), f"timestamp is not in {unit or 'seconds'}, as most are"),
    )
    good = rejects.sift(frame, log.file, reason, show)
    stars = found.stars(pl.col("number")).cast(pl.Float32).alias("rating")
    return good.select("user", "item", "title", stars, pl.col("whole").alias("timestamp"), "part")
