"""From --data PATH to a catalogue and three tables of examples."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rayrec import fields
from rayrec.data import log, period, synthetic, windows
from rayrec.data.candidates import adherence_rows, with_candidates
from rayrec.data.catalogue import Catalogue
from rayrec.data.core import k_core
from rayrec.data.mapped import SLICE, ascending, each, slices, take
from rayrec.data.schema import places
from rayrec.data.settings import DataConfig
from rayrec.data.sources import SOURCES, detect
from rayrec.data.sources.reading import Log, Raw, Truth
from rayrec.data.store import is_url
from rayrec.data.touched import Touched


@dataclass(frozen=True, eq=False)
class Dataset:
    """Checked data: ``train`` whole, ``valid`` and ``test`` the seeded samples, all three by ``schema.EXAMPLES``.

    ``train`` also has a column ``number``, the place of the row. ``rejected`` holds the bad rows
    (``reading.REJECTED``), ``counts`` account for every row, ``content_hash`` is the sha256 of catalogue and examples
    whatever their path and the ids of items, ``truth`` the distribution behind synthetic data.
    """

    catalogue: Catalogue
    train: pa.Table
    valid: pa.Table
    test: pa.Table
    rejected: pa.Table
    counts: dict[str, int]
    content_hash: str
    source: str
    told: dict[str, str]  #: what the plan tells about the columns of the files, by name
    truth: Truth | None = None
    adherence: pa.Table | None = None  #: rows with several liked titles among their candidates, if there are ratings

    @property
    def evaluated(self) -> dict[str, pa.Table]:
        """The rows that policies are evaluated on, by split."""
        extra = {} if self.adherence is None else {"adherence": self.adherence}
        return {"valid": self.valid, "test": self.test, **extra}


def _digest(shas: defaultdict[tuple[str, ...], Any], name: tuple[str, ...], some: pa.Array) -> None:
    """Hash a part of a column; Arrow's own bytes also hold chunk borders, offsets and bytes behind nulls."""
    some = some.cast(pa.string()) if pa.types.is_large_string(some.type) else some
    lists, texts = pa.types.is_list(some.type), pa.types.is_string(some.type)
    assert lists or texts or pa.types.is_primitive(some.type) or pa.types.is_null(some.type), f"{name}: {some.type}"
    if not lists and not texts:
        shas[*name, "valid"].update(some.is_valid().to_numpy(zero_copy_only=False))
        shas[*name, "values"].update(some.drop_null().to_numpy(zero_copy_only=False).tobytes())
        return
    lengths = some.value_lengths() if lists else pc.call_function("binary_length", [some])
    shas[*name, "lengths"].update(lengths.fill_null(-1).to_numpy())
    some = some.drop_null() if some.null_count else some
    if lists:
        _digest(shas, (*name, "values"), some.flatten())
        return
    _, ends, text = some.buffers()
    if text is not None:
        ends = np.frombuffer(ends, np.int32)[some.offset : some.offset + len(some) + 1]
        shas[*name, "values"].update(memoryview(text)[ends[0] : ends[-1]])


def content_hash(*tables: pa.Table) -> str:
    """Return the sha256 of the tables' column names, values and metadata; the rows are read once."""
    sha = hashlib.sha256()
    for table in tables:
        sha.update(repr((table.column_names, sorted((table.schema.metadata or {}).items()))).encode())
        shas = defaultdict[tuple[str, ...], Any](hashlib.sha256)
        for some in table.to_reader(SLICE):
            for place, name in enumerate(table.column_names if len(some) else ()):
                _digest(shas, (name,), some.column(place))
        sha.update(repr(sorted((name, part.hexdigest()) for name, part in shas.items())).encode())
    return sha.hexdigest()


def _sample(table: pa.Table, rows: int, seed: int, salt: int) -> pa.Table:
    """Draw without replacement and keep the order; ``salt`` makes the draws of the splits independent."""
    if len(table) <= rows:
        return table
    return take(table, np.sort(np.random.default_rng((seed, salt)).choice(len(table), rows, replace=False)))


def _checked(raw: Raw, config: DataConfig) -> tuple[Raw, pa.Table, dict[str, int], dict[str, str]]:
    """Return the raw data with its interactions as a table, the rows set aside, counts, and what the plan tells.

    ValueError: there are bad rows, and they are to stop the run; or a setting is for other data.
    """
    dropped, told, file = {}, dict[str, str](), None
    if isinstance(raw.interactions, Log):
        file = raw.interactions.file
        table, dropped, told = log.check(
            raw.interactions, raw.rejects, config.duplicates, config.liked_from, config.date_order
        )
        raw = replace(raw, interactions=table)
    elif config.liked_from is not None:
        raise ValueError(f"--liked-from {config.liked_from:g} reads the ratings of files, found none. Leave it out.")
    elif config.date_order is not None:
        raise ValueError(f"--date-order {config.date_order} reads the dates of files, found none. Leave it out.")
    elif config.duplicates == "keep":
        raise ValueError("--duplicates keep reads the interactions of files, found none. Leave it out.")
    kept: Any = raw.interactions if raw.interactions is not None else raw.windows
    assert kept is not None, "a source returns interactions or windows"
    rejected = raw.rejects.table()
    if len(rejected) and (config.bad_rows == "stop" or not len(kept)):
        first = rejected.slice(0, 1).to_pylist()[0]
        where = f"{first['file']} row {first['row']}: {first['reason']}: {first['text'][:200]!r}"
        remedy = "Correct them, or set them aside with --bad-rows drop"
        if not len(kept):
            remedy = "All rows are bad: correct the file, or name another column of your table by --columns"
            of_log = {row["reason"] for row in rejected.to_pylist() if row["file"] != raw.item_file}
            if of_log == {"unknown item id"}:
                remedy = "No id of the log is one of an item: write them alike in both files (7.0 and 007 are not 7)"
        raise ValueError(f"--data {config.data}: found {len(rejected)} bad rows, the first in {where}. {remedy}.")
    reasons = Counter(rejected["reason"].to_pylist())
    files = rejected["file"].to_pylist()
    in_items = files.count(raw.item_file)
    in_log = len(files) - in_items if file is None else files.count(file)  # some sources have files of genres too
    counts = {"item_rows_read": len(raw.items) + in_items}
    counts["rows_read"] = len(kept) + in_log + dropped.get("duplicate_rows_dropped", 0)
    counts |= {"rows_rejected": len(rejected)} | dropped
    counts |= {f"rejected: {reason}": count for reason, count in sorted(reasons.items())}
    return raw, rejected, counts, told | raw.rejects.told


def _check_settings(config: DataConfig) -> None:
    fields.check(config)
    if config.min_history is not None and not 1 <= config.min_history <= config.history:
        raise ValueError(f"--min-history is {config.min_history}, wanted 1 to --history {config.history}.")
    if config.targets == "all" and config.split != "sequences":
        raise ValueError(
            f"--targets all is read by --split sequences, found {config.split}. Add it, or leave this out."
        )


def _between(raw: Raw, config: DataConfig, source: str) -> Raw:
    """The interactions between ``--since`` and ``--until``."""
    if config.since is None and config.until is None:
        return raw
    if not isinstance(raw.interactions, pa.Table):
        flag = "--since" if config.since is not None else "--until"
        raise ValueError(f"{flag}: {source} data is cut into rows already. Leave it out.")
    kept, counts = period.between(raw.interactions, config.since, config.until)
    return replace(raw, interactions=kept, counts=raw.counts | counts, truth=None)


def _cored(raw: Raw, k: int, source: str) -> Raw:
    """The k-core of the interactions, and its items."""
    if not k:
        return raw
    every = raw.interactions
    if every is None or isinstance(every, Log):
        raise ValueError(f"--k-core {k}: {source} data is cut into rows already. Leave --k-core out.")
    kept = k_core(every, k)
    items = raw.items.filter(pl.col("title").is_in(kept["title"].unique().to_pylist()))
    counts = {"interactions_outside_core": len(every) - len(kept)}
    counts |= {"items_outside_core": len(raw.items) - len(items)}
    return replace(raw, interactions=kept, items=items, counts=raw.counts | counts, truth=None)


def _cut(raw: Raw, config: DataConfig, source: str) -> windows.Windows:
    if not isinstance(raw.interactions, pa.Table):
        if config.split != "auto":
            raise ValueError(f"--split {config.split}: {source} data is split already. Leave --split out.")
        found = raw.windows if raw.windows is not None else pl.DataFrame()
        return windows.ready(found, config.history, drop=config.bad_rows == "drop")
    split = "time" if config.split == "auto" else config.split
    least = config.min_history or (min(config.history, 10) if split == "time" else 1)
    return windows.cut(raw.interactions, config.history, split, least, config.targets)


def _outside(cut: windows.Windows, catalogue: Catalogue) -> dict[str, int]:
    """Count titles that the examples name and the catalogue lacks, and items that training never shows."""
    absent, targets, histories = cut.titles.filter(pa.array(places(cut.titles, pa.array(catalogue.titles)) < 0)), 0, 0
    for some in slices(pa.concat_tables(cut.splits.values())) if len(absent) else ():
        targets += int((places(some["target"], absent) >= 0).sum())
        histories += int((places(some["history"].combine_chunks().flatten(), absent) >= 0).sum())
    counts = {"targets_outside_catalogue": targets, "history_titles_outside_catalogue": histories}
    return counts | {"items_never_in_training": int((catalogue.popularity == 0).sum())}


def _without(cut: windows.Windows, titles: Collection[str]) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """Return the splits without the rows that ask for one of ``titles``, and their counts."""
    if not titles:
        return cut.splits, {}
    known, splits = pa.array(list(titles), pa.string()), {}
    for name, rows in cut.splits.items():
        splits[name] = each(rows, lambda some: some.filter(pa.array(places(some["target"], known) < 0)))
        if not len(splits[name]):
            raise ValueError(
                f"All {len(rows)} {name} rows ask for a title that is too long for an answer. Raise --max-new-tokens, "
                "or shorten the titles."
            )
    counts = {f"{name}_rows_of_long_titles": len(rows) - len(splits[name]) for name, rows in cut.splits.items()}
    return splits, {name: count for name, count in counts.items() if count}


def numbered(rows: pa.Table) -> pa.Table:
    """The rows with a column ``number``, the place of each."""
    return rows.append_column("number", pa.array(ascending(len(rows))))


def _raw(source: str, folder: Path | None, config: DataConfig) -> Raw:
    named = folder is not None and SOURCES[source].named
    if config.columns and not named:
        raise ValueError(
            f"--columns is read for own tables, and --source is {source}, which has its names. Leave it out."
        )
    if folder is None:
        return synthetic.generate(config.history)
    return SOURCES[source].read(folder, config.columns) if named else SOURCES[source].read(folder)


def _read(config: DataConfig) -> tuple[str, Raw]:
    """The source's name and what it reads."""
    try:
        source, folder = detect(config.source, config.data)
    except PermissionError as error:
        raise ValueError(
            f"--data {config.data}: this user may not read {error.filename}. Allow it, or name another folder."
        ) from error
    try:
        return source, _raw(source, folder, config)
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise ValueError(f"{folder}: a column has a type that does not fit: {error}. Correct the file.") from error
    except ValueError as error:
        if config.data is not None and is_url(config.data):
            raise ValueError(f"--data {config.data}, of which {folder} is a copy: {error}") from error
        raise


def interactions(config: DataConfig) -> tuple[pa.Table, pa.Table]:
    """Read and check the interactions (schema.INTERACTIONS) of ``config``, and the bad rows beside them.

    ValueError: anything is not as wanted, or the source has ready rows and no interactions of users.
    """
    source, raw = _read(config)
    raw, rejected, _, _ = _checked(raw, config)
    if not isinstance(raw.interactions, pa.Table):
        raise ValueError(f"--data {config.data}: the source {source} has ready rows and no interactions of users.")
    kept = _between(raw, config, source).interactions
    assert isinstance(kept, pa.Table)
    return kept, rejected


def load(config: DataConfig, without: Collection[str] = ()) -> Dataset:
    """Read, check, window and split the data of ``config``. ValueError: anything is not as wanted.

    The titles ``without``, which no answer can hold, are in histories alone: neither in the catalogue nor targets.
    """
    _check_settings(config)
    source, raw = _read(config)
    raw, rejected, counts, told = _checked(raw, config)
    raw = _cored(_between(raw, config, source), config.k_core, source)
    items = raw.items.remove(pl.col("title").is_in(list(without))) if without else raw.items
    catalogue = Catalogue.from_items(*(items[name].to_list() for name in ("title", "genres", "item")))
    counts["duplicate_titles"] = len(items) - len(catalogue)
    cut = _cut(raw, config, source)
    seen = dict(zip(*(a.to_pylist() for a in cut.training_titles.value_counts().flatten()), strict=True))
    catalogue = catalogue.with_training(np.array([seen.get(title, 0) for title in catalogue.titles]), raw.genres)
    splits, left_out = _without(cut, without)
    train, valid, test = (splits[name] for name in windows.SPLITS)
    counts |= raw.counts | cut.counts | left_out | _outside(cut, catalogue)
    counts |= {"catalogue": len(catalogue), "train": len(train), "valid_windows": len(valid), "test_windows": len(test)}
    every, adherence = (train, valid, test), None
    valid, test = _sample(valid, config.valid_rows, config.seed, 1), _sample(test, config.test_rows, config.seed, 2)
    if config.protocol == "candidates":
        # Training rows leave out the titles that the user touched in training, evaluated rows all titles ever touched.
        train = with_candidates(train, Touched(train), catalogue, config.seed)
        # With one row of a user, or one left out, rows do not show all of them; ready rows are all that is known.
        touched = Touched(raw.interactions) if isinstance(raw.interactions, pa.Table) else Touched(*every)
        valid, test = (with_candidates(rows, touched, catalogue, config.seed) for rows in (valid, test))
        # Where a user has one test row, the validation row before it is the last one that two titles come after.
        later = pa.concat_tables(every[1:]) if config.split == "leave_last_two" else every[2]
        adherence = adherence_rows(later, touched, catalogue, config.seed, config.test_rows)
        adherence = adherence if len(adherence) else None
    counts |= {"valid": len(valid), "test": len(test)}
    digest = content_hash(
        catalogue.to_table().drop_columns("ids"), train, valid, test, *([] if adherence is None else [adherence])
    )
    train = numbered(train)
    return Dataset(catalogue, train, valid, test, rejected, counts, digest, source, told, raw.truth, adherence)
