"""Data in an object store: the files that sources read are copied to this machine, and read here."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from rayrec.data import store
from rayrec.data.sources import files

_CHUNK = 2**24


def fetch(url: str, formats: Sequence[tuple[Collection[str], Collection[str]]]) -> Path:
    """Return the folder of this machine with those files of the folder ``url`` that a format reads.

    ``formats`` are patterns of files that must be there, and of others. Of a folder of no format the tables are copied
    (:func:`rayrec.data.sources.files.is_table`). An address of a file stands for its folder, and the file is returned;
    file:// is read in place. A file that was copied before and has the same size and time is not copied again.

    Raises:
        ValueError: there is no such folder, the store cannot be read, or the disk here is too small.
    """
    from pyarrow.fs import FileSelector, FileType

    store.check_url("--data", url)
    system, at = store.open_url(url)
    if system.type_name == "local":
        return Path(at)
    try:
        kind = system.get_file_info(at).type
        at, _, own = at.rpartition("/") if kind == FileType.File else (at, "", "")
        found = system.get_file_info(FileSelector(at, recursive=True)) if kind != FileType.NotFound else []
        known = {info.path[len(at.rstrip("/")) + 1 :]: info for info in found if info.is_file}
        if not known:
            raise ValueError(f"--data {url}: there is no such file or folder. Name one that exists.")
        read = [(*needed, *more) for needed, more in formats if all(_any(known, {one}) for one in needed)]
        every, tables = {*chain(*read)}, not read and not own
        wanted = {name for name in known if name == own or _fits(name, every) or (tables and files.is_table(name))}
        with _alone(store.copy_of(url)):
            return _copied(url, system, {name: known[name] for name in wanted}) / own
    except OSError as error:
        raise ValueError(f"--data {url}: cannot be read: {error}. Name one that can.") from error


def _any(names: Iterable[str], patterns: Collection[str]) -> bool:
    return any(_fits(name, patterns) for name in names)


def _fits(name: str, patterns: Collection[str]) -> bool:
    """Whether a file is one of ``patterns``, packed or not, or a part of a Parquet table."""
    if ".." in PurePosixPath(name).parts:
        return False
    tables = [pattern.removesuffix(".parquet") for pattern in patterns if pattern.endswith(".parquet")]
    every = [f"{table}{ending}/*.parquet" for table in tables for ending in ("", ".parquet")]
    every += [pattern + packed for pattern in patterns for packed in files.PACKED]
    return any(fnmatch.fnmatchcase(name, one) for one in every)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that change ``folder``: files that they have not finished look like leftovers."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "data.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copied(url: str, system: Any, wanted: dict[str, Any]) -> Path:
    """Make this machine's copy of a folder equal to the files ``wanted`` of the store, and return it."""
    here = store.copy_of(url) / "data"
    here.mkdir(parents=True, exist_ok=True)
    for file in [path for path in here.rglob("*") if path.is_file() and str(path.relative_to(here)) not in wanted]:
        file.unlink()
    new = {name: info for name, info in wanted.items() if not _same(here / name, info)}
    needed, free = sum(info.size for info in new.values()), shutil.disk_usage(here).free
    if needed > free:
        raise ValueError(
            f"--data {url}: its files have {needed / 1e9:,.1f} GB, and {here} has {free / 1e9:,.1f} GB free. Point "
            "RAYREC_COPIES to a larger disk."
        )
    for name, info in new.items():
        file = here / name
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with system.open_input_stream(info.path, compression=None) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK)
            os.utime(partial, ns=(info.mtime_ns, info.mtime_ns))
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)
    return here


def _same(file: Path, info: Any) -> bool:
    if not file.is_file():
        return False
    found = file.stat()
    return (found.st_size, found.st_mtime_ns) == (info.size, info.mtime_ns)
