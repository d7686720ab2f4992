"""JSON files, and files with an object in each line: JSON's, or Python's as older data sets have them."""

import ast
import io
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from rayrec.data.sources import files
from rayrec.data.sources.columns import ROWS, compact
from rayrec.data.sources.reading import Rejects

#: Objects whose keys are those of a table.
_FIRST = 100


def _is_utf8(value: Any) -> bool:
    """JSON can spell half a surrogate pair, which no UTF-8 table can hold; Python's literals have further types."""
    try:
        json.dumps(value, ensure_ascii=False, default=repr, skipkeys=True).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path, kind: type) -> Any:
    """Return one JSON value of type ``kind``; ValueError names the row where it is no JSON."""
    text = files.text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # too deep lists, and numbers of thousands of digits too
        where = f"{path}: row {getattr(error, 'lineno', 1)} is not JSON: {getattr(error, 'msg', error)}"
        raise ValueError(f"{where}. Is the file cut off? Fetch it again.") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: found a JSON {type(value).__name__}, wanted a {kind.__name__}.")
    if "\\u" in text and not _is_utf8(value):
        raise ValueError(
            f"{path}: holds half a surrogate pair (\\ud800 to \\udfff), which is no text. Correct that title."
        )
    return value


def _object(line: str) -> Any:
    """The value of a line of JSON, or of a Python literal. ValueError or RecursionError: it is neither."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        if "'" not in line:
            raise
        try:
            return ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise error from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file of any size, and their rows from 1."""
    try:
        with io.TextIOWrapper(files.opener(path)(), encoding="utf-8-sig", newline="\n") as file:
            yield from enumerate(file, 1)
    except (OSError, UnicodeDecodeError):
        files.text(path)  # names the row that is not UTF-8, or says that the file is cut off
        raise


def read_jsonl(path: Path, rejects: Rejects) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Yield (row, object, line) of a file of objects, one in a line; other lines but blank ones are set aside."""
    for row, text in _lines(path):
        if not (line := text.removesuffix("\n").removesuffix("\r")).strip():
            continue
        try:
            value = _object(line)
        except (ValueError, RecursionError) as error:
            rejects.add(path.name, row, f"not JSON: {getattr(error, 'msg', error)}", line)
            continue
        if not isinstance(value, dict) or ("\\u" in line and not _is_utf8(value)):
            rejects.add(path.name, row, "not a JSON object of UTF-8 text", line)
            continue
        yield row, value, line


def keys(path: Path) -> list[str]:
    """Return the keys of the first objects of a file, one in a line. ValueError: there is no object in them."""
    found = [value for _, value, _ in itertools.islice(read_jsonl(path, Rejects()), _FIRST)]
    if not found:
        convert = 'python3 -c "import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin)]"'
        raise ValueError(
            f"{path}: found no line that is a JSON object, wanted one in each line. If the file is one list: "
            f"`{files.rewrite(path, convert)}`."
        )
    return list(dict.fromkeys(key for value in found for key in value))


def read_table(path: Path, rejects: Rejects, names: Mapping[str, str], optional: Collection[str] = ()) -> pl.DataFrame:
    """Return the values ``names`` (found → wanted name) of each line as text, with the column ``row``.

    A line without a value that is not ``optional``, or with a list or an object where no genres are, is set aside.
    """
    types = {"row": pl.Int64, **dict.fromkeys(names.values(), pl.String)}
    needed = [name for name, wanted in names.items() if wanted not in optional]
    flat = [name for name, wanted in names.items() if wanted != "genres"]
    rows, frames = list[tuple[Any, ...]](), list[pl.DataFrame]()
    for row, value, line in read_jsonl(path, rejects):
        if missing := [name for name in needed if value.get(name) is None]:
            rejects.add(path.name, row, f"without {', '.join(missing)}", line)
            continue
        if nested := [name for name in flat if isinstance(value.get(name), dict | list)]:
            rejects.add(path.name, row, f"a list or an object as {', '.join(nested)}", line)
            continue
        rows.append((row, *(None if (one := value.get(name)) is None else str(one) for name in names)))
        if len(rows) == ROWS:
            frames.append(compact(pl.DataFrame(rows, types, orient="row")))
            rows = []
    return pl.concat([*frames, compact(pl.DataFrame(rows, types, orient="row"))], rechunk=False)
