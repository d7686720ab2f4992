"""CSV and Parquet files as a stream: some thousand rows at a time, of which the wanted columns are kept."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet

from rayrec.data.sources import files
from rayrec.data.sources.reading import Rejects

#: What may separate the columns of a table, likeliest first.
SEPARATORS = (",", "\t", ";", "|")
#: Columns of text with few values.
_NAMES = cs.by_name("user", "item", require_all=False) & cs.string()
#: Those that rows of a log have too, where titles are in it.
_TITLES = cs.by_name("title", "genres", require_all=False) & cs.string()
#: The column of row numbers while others have the names of the file, which may be any.
_ROW = "\0row"
#: Bytes of a CSV file, and rows of other files, that are read at once.
_BYTES, ROWS = 1 << 22, 1 << 16
#: Bytes in which the form of a CSV file shows.
_HEAD = 1 << 16


class Form(NamedTuple):
    """How a delimited file is written.

    Without ``separator`` it is the one of the header; ``names`` are the columns of a file without a header; ``latin``
    takes Latin-1 where the file is not UTF-8.
    """

    separator: str | None = ","
    quoted: bool = True
    names: Sequence[str] = ()
    latin: bool = False


COMMAS = Form()
#: Tabs between columns, and quotes as they are.
TABS = Form("\t", quoted=False)


def header(path: Path, form: Form = COMMAS) -> list[str]:
    """Return the columns of a delimited file.

    Raises:
        ValueError: there is none, one is repeated, or the bytes are not UTF-8.
    """
    return _readable(path, form, lambda opened: _header(path, form, opened)[0])


def read_csv(
    path: Path, rejects: Rejects, names: Mapping[str, str], optional: Collection[str] = (), form: Form = COMMAS
) -> pl.DataFrame:
    """Return the columns ``names`` (found → wanted name) of a delimited file as text, with the column ``row``.

    Columns whose wanted name is ``optional`` may be missing. Rows of another width are set aside; blank ones are passed
    over. Rows are counted from 1, a header included.

    Raises:
        ValueError: a column is missing, or as :func:`header`; or a quote is not closed.
    """
    kept = _kept(path, header(path, form), names, optional)
    types = {"row": pl.Int64, **dict.fromkeys(kept.values(), pl.String)}
    empty = pl.DataFrame(schema=types)
    return _readable(path, form, lambda opened: together(_read_csv(path, rejects, kept, form, opened), empty))


def _readable(path: Path, form: Form, read: Callable[[Callable[[], BinaryIO]], Any]) -> Any:
    """Call ``read`` with a function that opens the file, once more as Latin-1 where the form takes it."""
    opened = files.opener(path)
    try:
        return read(opened)
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid):
        text = files.text(path, form.latin)  # names the row that is not UTF-8
        if not form.latin:
            raise
        return read(lambda: io.BytesIO(text.encode()))


def _kept(path: Path, found: Sequence[str], names: Mapping[str, str], optional: Collection[str]) -> dict[str, str]:
    """Those of ``names`` that are found."""
    missing = [name for name, wanted in names.items() if name not in found and wanted not in optional]
    if missing:
        raise ValueError(
            f"{path}: found columns {[*found]}, but {missing} are missing. Add them or name another format by --source."
        )
    return {name: wanted for name, wanted in names.items() if name in found}


def _header(path: Path, form: Form, opened: Callable[[], BinaryIO]) -> tuple[list[str], str]:
    """The names of the columns, and what separates them."""
    if form.names:
        return [*form.names], form.separator or ","
    quoting = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
    with io.TextIOWrapper(opened(), encoding="utf-8-sig", newline="") as file:
        separator, lines = form.separator, file
        if separator is None:
            line = file.readline()
            if re.fullmatch(r"sep=.\s*", line):
                remedy = files.rewrite(path, "sed 1d")
                raise ValueError(f"{path}: the first row is Excel's {line.strip()}. Remove it: `{remedy}`.")
            bare = re.sub(r'"[^"]*"', "", line)
            separator, lines = max(SEPARATORS, key=bare.count), itertools.chain([line], file)
        found = next(csv.reader(lines, delimiter=separator, quoting=quoting), [])
    found = [name or f"column {place}" for place, name in enumerate(found, 1)] if "".join(found).strip() else []
    if not found and not files.text(path).strip():
        raise ValueError(f"{path}: the file is empty, wanted a header and rows.")
    if not found:
        raise ValueError(
            f"{path}: the first row is blank, wanted a header. Remove it: `{files.rewrite(path, 'sed 1d')}`."
        )
    if form.quoted:
        _check_form(path, found, separator, opened)
    if len(set(found)) < len(found):
        raise ValueError(f"{path}: a column name is repeated in {found}. Rename one.")
    return found, separator


def _check_form(path: Path, found: Sequence[str], separator: str, opened: Callable[[], BinaryIO]) -> None:
    """Arrow takes quotes that follow a space, and single ones, for a part of the field."""
    mark = re.escape(separator)
    with opened() as file:
        spaced = re.search(rf'{mark} +"[^"\r\n{mark}]'.encode(), file.read(_HEAD))
    single = any(re.fullmatch(r" *'[^']+'", name) for name in found)
    if spaced or single:
        quote = 39 if single else 34
        read = f"csv.reader(sys.stdin, delimiter={separator!r}, quotechar=chr({quote}), skipinitialspace=True)"
        convert = f'python3 -c "import csv, sys; csv.writer(sys.stdout).writerows({read})"'
        raise ValueError(
            f"{path}: found {'single quotes' if single else 'spaces before quotes'}, wanted double quotes right after "
            f"{separator!r}. Write it so: `{files.rewrite(path, convert)}`."
        )


def _check_quotes(path: Path, separator: str, opened: Callable[[], BinaryIO]) -> None:
    """Arrow reads an unclosed quote to the end of the file in silence; the standard library can be strict about it."""
    with opened() as raw:
        if not any(b'"' in block for block in iter(lambda: raw.read(1 << 20), b"")):
            return
    with io.TextIOWrapper(opened(), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        csv.field_size_limit(max(csv.field_size_limit(), _BYTES))  # the library's own is below a long review
        try:
            for _ in reader:
                pass
        except csv.Error as error:
            where = f"{path}: the quoted field that ends at row {reader.line_num} is broken"
            with opened() as head:
                escaped = b'\\"' in head.read(_HEAD)  # by MySQL and Spark
            twice = files.rewrite(path, """sed 's/\\\\"/""/g'""")
            remedy = f"Close the quote{f', or write quotes in it twice: `{twice}`' if escaped else ''}"
            raise ValueError(f"{where}: {error}. {remedy}.") from error


def _read_csv(
    path: Path, rejects: Rejects, kept: Mapping[str, str], form: Form, opened: Callable[[], BinaryIO]
) -> Iterator[pl.DataFrame]:
    columns, separator = _header(path, form, opened)
    if form.quoted:
        _check_quotes(path, separator, opened)
    skipped, wrong = list[int](), list[pyarrow.csv.InvalidRow]()

    def set_aside(bad: pyarrow.csv.InvalidRow) -> str:
        skipped.append(bad.number)
        wrong.extend([bad] if bad.text.strip() else [])
        return "skip"

    with opened() as file:
        reader = _reader(
            file,
            # with threads the row numbers are lost
            read_options=pyarrow.csv.ReadOptions(use_threads=False, column_names=form.names or None, block_size=_BYTES),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if form.quoted else False,
                newlines_in_values=form.quoted,
                ignore_empty_lines=False,
                invalid_row_handler=set_aside,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys([*columns, ""], pa.string()), strings_can_be_null=False
            ),
        )
        first = 1 if form.names else 2
        for batch in reader:
            rows = np.setdiff1d(np.arange(first, first + len(batch) + len(skipped)), skipped)[: len(batch)]
            first = int(rows[-1]) + 1 if len(rows) else first
            skipped = [number for number in skipped if number >= first]
            frame = pl.DataFrame(pl.from_arrow(batch.rename_columns(columns)))
            frame = frame.with_columns(pl.Series(_ROW, rows, pl.Int64))
            blank = pl.all_horizontal(pl.col(columns) == "")
            yield _renamed(frame.remove(blank) if frame.select(blank.any()).item() else frame, kept)
    for bad in wrong:  # not before: a file that turns out to be Latin-1 is read again
        reason = f"{bad.actual_columns} columns instead of {bad.expected_columns}"
        rejects.add(path.name, bad.number, reason, bad.text)
    pa.default_memory_pool().release_unused()


def _reader(file: BinaryIO, **options: Any) -> Iterable[pa.RecordBatch]:
    """The rows of a CSV file; Arrow calls a header without a line end an empty file."""
    try:
        return pyarrow.csv.open_csv(file, **options)
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            raise
        return ()


def _renamed(frame: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """The column ``row`` and those of ``names``."""
    return frame.select(pl.col(_ROW).alias("row"), *(pl.col(name).alias(wanted) for name, wanted in names.items()))


def together(frames: Iterable[pl.DataFrame], empty: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of all frames, each read when the one before is compact; ``empty`` has their columns."""
    return pl.concat([compact(empty), *map(compact, frames)], rechunk=False)


def compact(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with each name of users, items, titles and genres in memory once."""
    names = _NAMES | _TITLES if "user" in frame.columns else _NAMES
    return frame.with_columns(names.cast(pl.Categorical))


def parquet_header(path: Path) -> list[str]:
    """Return the columns of a Parquet file or folder of parts, Hive partitions too. ValueError: it is cut off."""
    return _parquet(path).schema.names


def _parquet(path: Path) -> Any:
    """The table of a file, or of parts with the columns of all; what folders such as user=007 name is text.

    Arrow itself takes the columns and types of the first part, and 007 for a number.
    """
    try:
        found = pyarrow.dataset.dataset(path, format="parquet", partitioning=None)
        if path.is_file():  # the folders above a file name no columns of it
            return found
        types = dict[str, dict[pa.DataType, None]]()
        for part in found.get_fragments():
            for column in part.physical_schema:
                types.setdefault(column.name, {})[column.type] = None
        above = [Path(file).absolute().relative_to(path.absolute()).parent.parts for file in found.files]
        names = dict.fromkeys(folder.partition("=")[0] for folders in above for folder in folders if "=" in folder)
        named = pa.schema([(name, pa.string()) for name in names if name not in types])
        schema = pa.schema([*((name, _common([*kinds])) for name, kinds in types.items()), *named])
        hive = pyarrow.dataset.partitioning(named, flavor="hive")
        return pyarrow.dataset.dataset(path, schema, format="parquet", partitioning=hive)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is not readable Parquet: {error}. Is the file cut off? Write it again.") from error


def _common(types: Sequence[pa.DataType]) -> pa.DataType:
    """The type that values of all types fit into."""
    try:
        some = [pa.schema([("column", kind)]) for kind in types]
        return pa.unify_schemas(some, promote_options="permissive").field(0).type
    except pa.ArrowTypeError:
        return pa.string()


def read_parquet(path: Path, names: Mapping[str, str], optional: Collection[str] = ()) -> pl.DataFrame:
    """Return the columns ``names`` of a Parquet table as :func:`read_csv` does, with their types.

    Raises:
        ValueError: a column is missing, or the file is cut off or no Parquet.
    """
    dataset = _parquet(path)
    kept = _kept(path, dataset.schema.names, names, optional)
    for name, wanted in kept.items():
        kind = dataset.schema.field(name).type
        span = pa.types.is_time(kind) or pa.types.is_duration(kind)
        if (span and wanted == "timestamp") or (pa.types.is_nested(kind) and wanted != "genres"):
            raise ValueError(
                f"{path}: column {name!r} has the type {kind}, wanted {'moments' if span else 'text or numbers'}. "
                f"Convert it, or name another column by --columns {wanted}=COLUMN."
            )

    empty = pl.DataFrame(pl.from_arrow(dataset.schema.empty_table())).with_columns(pl.Series(_ROW, [], pl.Int64))

    def read() -> Iterator[pl.DataFrame]:
        first = 1
        few = {"batch_readahead": 1, "fragment_readahead": 1, "use_threads": False, "batch_size": ROWS}
        few["fragment_scan_options"] = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
        for batch in dataset.to_batches([*kept], **few):
            rows = pl.Series(_ROW, np.arange(first, first + len(batch)), pl.Int64)
            yield _renamed(pl.DataFrame(pl.from_arrow(batch)).with_columns(rows), kept)
            first += len(batch)
            pa.default_memory_pool().release_unused()

    try:
        return together(read(), _renamed(empty, kept))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is not readable Parquet: {error}. Is the file cut off? Write it again.") from error
