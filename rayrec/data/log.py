"""The interactions of a source: checked, rated in stars, in order of time, each once."""

from typing import NamedTuple

import polars as pl
import pyarrow as pa

from rayrec.data import scale, schema
from rayrec.data.sources.reading import Log, Rejects, first_case

#: Rows whose columns are converted at once: intermediate columns take a hundred bytes a row.
_SLICE = 1 << 17
#: Seconds since the epoch are below 1e11 until the year 5138.
_UNITS = {"milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17}
_ISO = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_ZONE = r"\s*(?:Z|[+-]\d\d:?\d\d)$"


class Checked(NamedTuple):
    """Interactions by ``schema.INTERACTIONS``, counts of rows, and what the plan tells about the columns."""

    table: pa.Table
    counts: dict[str, int]
    told: dict[str, str]


def check(log: Log, rejects: Rejects, duplicates: str = "drop", liked_from: float | None = None) -> Checked:
    """Return the good rows of ``log`` and set the others aside.

    Rows are in order of time at its full precision, equal times in file order; times are cut to seconds then. Of rows
    that are equal in user, item, rating and time the first is kept, or all with ``duplicates`` "keep". ``liked_from``
    is described at :func:`rayrec.data.scale.of`.
    """
    rated = "rating" in log.frame.columns
    if not rated and liked_from is not None:
        raise ValueError(f"--liked-from {liked_from:g} reads ratings, and {log.file} has none. Leave it out.")
    ratings = (
        log.frame.select(_number(log.frame.schema["rating"])).to_series()
        if rated
        else pl.Series("rating", [], pl.Float64)
    )
    found = scale.of(ratings, liked_from)
    unit, told = _unit(log.frame), {"ratings": found.told} if rated else {}
    if unit:
        told["timestamps"] = f"in {unit}"
    parts = [_checked(part, log, rejects, found, unit) for part in [*log.frame.iter_slices(_SLICE)] or [log.frame]]
    good, counts = pl.concat(parts), {}
    unrated = good["rating"].null_count()
    if rated and unrated:
        counts["rows_unrated"] = unrated
    # Rows without a user's own time have their place as time, and no two are equal.
    again = ~pl.struct("user", "item", "rating", "timestamp", "part").is_first_distinct()
    if count := good.select(again.sum()).item():
        kept = duplicates == "keep"
        counts["duplicate_rows_kept" if kept else "duplicate_rows_dropped"] = count
        good = good if kept else good.remove(again)
        did = "all kept" if kept else "each kept once; --duplicates keep keeps all"
        told["duplicates"] = f"{count:,} rows are equal to an earlier one in user, item, rating and time: {did}"
    good = good.sort("timestamp", "part", maintain_order=True).select("user", "title", "rating", "timestamp")
    return Checked(schema.check(good.to_arrow(), schema.INTERACTIONS, log.file), counts, told)


def _number(kind: pl.DataType) -> pl.Expr:
    """The ratings as numbers, booleans too; null where there is none, or where it is no number."""
    rating = pl.col("rating")
    if kind == pl.String:
        text = rating.str.strip_chars().str.to_lowercase()
        rating = pl.when(text == "true").then(pl.lit("1")).when(text == "false").then(pl.lit("0")).otherwise(text)
    number = rating.cast(pl.Float64, strict=False)
    return number.fill_nan(None) if kind.is_float() else number  # pandas' empty cells in Parquet


def _text(frame: pl.DataFrame) -> pl.DataFrame:
    """Decimals and categories as text, whose every digit counts."""
    kind = frame.schema["timestamp"]
    exact = kind.is_integer() or kind.is_float() or kind.is_temporal() or kind == pl.String
    return frame if exact else frame.with_columns(pl.col("timestamp").cast(pl.String))


def _unit(frame: pl.DataFrame) -> str | None:
    """The unit of numbers that are too large to be seconds."""
    times = _text(frame.select("timestamp"))["timestamp"]
    if times.dtype.is_temporal():
        return None
    middle = times.cast(pl.Float64, strict=False).median()
    found = [unit for unit, least in _UNITS.items() if isinstance(middle, float) and middle >= least]
    return found[-1] if found else None


def _times(frame: pl.DataFrame, unit: str | None) -> pl.DataFrame:
    """Add ``whole``, seconds since the epoch rounded down, and ``part``, their fraction in a unit of the column's."""
    time, kind = pl.col("timestamp"), frame.schema["timestamp"]
    if kind.is_temporal():
        fine = time.cast(pl.Datetime("ns", kind.time_zone)) if isinstance(kind, pl.Datetime) else time
        part = fine.dt.nanosecond() if isinstance(kind, pl.Datetime) else pl.lit(0)
        return frame.with_columns(_floor(time, kind).alias("whole"), part.cast(pl.Float64).alias("part"))
    seconds = time.cast(pl.Float64, strict=False)
    whole = seconds.floor().cast(pl.Int64, strict=False)
    whole = whole if kind.is_float() else pl.coalesce(time.cast(pl.Int64, strict=False), whole)
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
        plain = time.str.strip_chars().str.replace("T", " ", literal=True)
        zone = plain.str.extract(f"({_ZONE})").str.strip_chars().str.replace("Z", "+0000").str.replace(":", "")
        ahead = zone.str.slice(1, 2).cast(pl.Int64) * 3600 + zone.str.slice(3, 2).cast(pl.Int64) * 60
        ahead = pl.when(zone.str.starts_with("-")).then(-ahead).otherwise(ahead).fill_null(0)
        bare = plain.str.replace(_ZONE, "")
        read = pl.coalesce(bare.str.to_datetime(form, time_unit="ns", strict=False) for form in _ISO)
        frame = frame.with_columns(
            pl.coalesce("whole", read.dt.epoch("ns") // 10**9 - ahead).alias("whole"),
            pl.coalesce("part", read.dt.nanosecond().cast(pl.Float64)).alias("part"),
        )
    return frame


def _floor(time: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Seconds since the epoch, rounded down: ``dt.epoch`` rounds towards it."""
    if not isinstance(kind, pl.Datetime):
        return time.dt.epoch("s")
    size = {"ns": 10**9, "us": 10**6, "ms": 10**3}[kind.time_unit]
    return time.to_physical() // size


def _checked(frame: pl.DataFrame, log: Log, rejects: Rejects, found: scale.Scale, unit: str | None) -> pl.DataFrame:
    """The good rows of some: user, item, title, rating (stars), timestamp (whole seconds), part."""
    show = [name for name in ("user", "item", "rating", "timestamp") if name in frame.columns]
    rated = "rating" in show
    number = _number(frame.schema["rating"]) if rated else pl.lit(None, pl.Float64)
    empty = pl.lit(not rated)
    if rated:
        empty = pl.col("rating").is_null() | (pl.col("rating").cast(pl.String).str.strip_chars() == "")
        empty |= number.is_null() if frame.schema["rating"].is_float() else pl.lit(False)
    frame = (
        _times(_text(frame), unit)
        .with_columns(pl.col("user", "item").cast(pl.String))
        .join(log.catalogue.select("item", "title"), on="item", how="left", maintain_order="left")
        .with_columns(number.alias("number"), empty.alias("empty"))
    )
    inside = pl.col("number").is_between(found.low, found.high)
    inside = inside & pl.col("number").is_in([0.0, 1.0]) if found.name == "0 or 1" else inside
    reason = first_case(
        (pl.col("user").fill_null("") == "", "no user id"),
        (pl.col("title").is_null(), "unknown item id"),
        (~pl.col("empty") & (pl.col("number").is_null() | pl.col("number").is_nan()), "rating is not a number"),
        (~pl.col("empty") & ~inside, f"rating is not {'in ' if ' to ' in found.name else ''}{found.name}"),
        (pl.col("whole").is_null(), "timestamp is not a number of seconds or a date"),
    )
    good = rejects.sift(frame, log.file, reason, show)
    stars = found.stars(pl.col("number")).cast(pl.Float32).alias("rating")
    return good.select("user", "item", "title", stars, pl.col("whole").alias("timestamp"), "part")
