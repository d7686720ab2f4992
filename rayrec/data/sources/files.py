"""Files as people have them: packed or not, with any line ends, in UTF-8 and what else can be told from the bytes."""

import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

PACKED = ("", ".gz", ".zst", ".bz2")
#: A table of anyone's: a file of a folder, or a part of Hive partitions there.
_TABLE = r"(?:[^/=]+=[^/]*/)*[^/.][^/]*\.(?:csv|tsv|jsonl|ndjson|parquet)(?:\.(?:gz|zst|bz2))?"
#: By the first bytes of a file, Arrow's name of its packing and the tool that packs and unpacks it.
_PACKINGS = {b"\x1f\x8b": ("gzip", "gzip"), b"\x28\xb5\x2f\xfd": ("zstd", "zstd"), b"BZh": ("bz2", "bzip2")}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_HEAD = 1 << 16


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files of ``folder`` that fit ``pattern``, packed or not; an unpacked one hides its packed copies.

    ``NAME.parquet`` is also found as a folder of parts, called NAME or NAME.parquet.
    """
    found: dict[str, Path] = {}
    for ending in PACKED:
        for path in sorted(folder.glob(pattern + ending)):
            found.setdefault(str(path.with_suffix("") if path.suffix in PACKED else path), path)
    parts = folder / pattern.removesuffix(".parquet")
    if pattern.endswith(".parquet") and parts.is_dir() and any(parts.rglob("*.parquet")):
        found.setdefault(str(parts), parts)
    return list(found.values())


def is_table(name: str) -> bool:
    """Whether a path in a folder is that of a table, or of a part of one: CSV, JSON lines or Parquet, of any name."""
    return re.fullmatch(_TABLE, name) is not None


def tables(folder: Path) -> list[Path]:
    """Return the tables of a folder, and the parts of Hive partitions, of any name."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and "=" in path.name]
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and is_table(path.name)]
    return found + [path for part in inner for path in sorted(part.rglob("*.parquet"))]


def one(folder: Path, pattern: str) -> Path:
    """Return the only file that fits ``pattern``. ValueError: there is none, or more than one."""
    found = find(folder, pattern)
    if len(found) != 1:
        names = [path.name for path in found]
        raise ValueError(f"{folder}: found {names}, wanted one {pattern}. Move the others away, or name the format.")
    return found[0]


def _packing(path: Path) -> tuple[str, str] | None:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"PK\x03\x04"):
        remedy = f"Unpack it: `{unpacking(path, '.zip')}`, and put what it holds in its place."
        raise ValueError(f"{path}: is a zip archive. {remedy}")
    return next((kind for mark, kind in _PACKINGS.items() if start.startswith(mark)), None)


def unpacking(path: Path, ending: str) -> str | None:
    """Return the command that unpacks an archive into a folder of its name, or None if its ``ending`` is of none."""
    name, into = shlex.quote(str(path)), shlex.quote(f"{path}.files")
    if ending.endswith(".zip"):
        return f"python3 -m zipfile -e {name} {into}"
    if re.search(r"\.(tar(\.\w+)?|tgz)$", ending):
        return f"mkdir {into} && tar -xf {name} -C {into}"
    return None


def unpacked(path: Path) -> pa.NativeFile:
    """Open a file's bytes, unpacked whatever its name. ValueError: it cannot be read."""
    try:
        packing = _packing(path)
        return pa.input_stream(str(path), compression=packing[0] if packing else None)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}.") from error


def content(path: Path, most: int | None = None) -> bytes:
    """Return a file's bytes, unpacked, ``most`` or all. ValueError: it cannot be read, or its packing is cut off."""
    with unpacked(path) as file:
        try:
            return file.read(most)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error}. Is the file cut off? Fetch it again.") from error


def opener(path: Path) -> Callable[[], BinaryIO]:
    r"""Return a function that opens a text file's bytes, with lines that end in ``\n`` or ``\r\n``.

    Files are mended whole whose first line ends in ``\r`` or ``\r\r\n``, or that are UTF-16.
    """
    head = content(path, _HEAD)
    wide = head[:2] in _UTF16
    if wide:
        head = head[: len(head) // 2 * 2].decode("utf-16", "replace").encode()
    first = re.search(rb"\r\r\n|\r?\n|\r", head)
    end = first.group() if first else b"\n"
    alone = len(re.findall(rb"\r(?!\r*\n)", head))
    if end == b"\r\r\n" or (end == b"\r" and alone > head.count(b"\n")):  # a title may hold one or the other
        old = end
    elif wide:
        old = b"\r\n"
    else:
        return lambda: unpacked(path)
    data = content(path)
    try:
        data = (data.decode("utf-16").encode() if wide else data).replace(old, b"\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: begins as UTF-16, but {error}. Is the file cut off? Fetch it again.") from error
    return lambda: io.BytesIO(data)


def text(path: Path, latin: bool = False) -> str:
    """Return a file's text, without a byte order mark. ``latin`` takes Latin-1 where it is not UTF-8.

    ValueError names the row that is not UTF-8, and the command that converts the file.
    """
    with opener(path)() as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if latin:
            return data.decode("latin-1")
        row = data.count(b"\n", 0, error.start) + 1
        where = f"{path}: row {row} is not UTF-8. Convert the file"
        raise ValueError(f"{where}; if it is Latin-1: `{_convert(path, data)}`.") from error


def _convert(path: Path, data: bytes) -> str:
    """The command that turns a file into UTF-8; bytes that Latin-1 leaves without a letter are of Windows."""
    windows = re.search(rb"[\x80-\x9f]", data) and not re.search(rb"[\x81\x8d\x8f\x90\x9d]", data)
    kind = "cp1252" if windows else "latin1"
    return rewrite(path, f"iconv -f {kind} -t utf-8", "utf8")


def rewrite(path: Path, convert: str, ending: str = "new") -> str:
    """Return the command that sends a file, packed or not, through the command ``convert``."""
    name, packing = shlex.quote(str(path)), _packing(path)
    if packing:
        convert = f"{packing[1]} -dc < {name} | {convert} | {packing[1]} > {name}.{ending}"
    else:
        convert = f"{convert} < {name} > {name}.{ending}"
    return f"{convert} && mv {name}.{ending} {name}"
