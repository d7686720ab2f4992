"""Numbers that the papers print, for tables of their own beside those of a comparison."""

import json
from importlib.resources import files
from typing import Any


def published(data: str, protocol: str) -> list[dict[str, Any]]:
    """Return a row per method of the papers' tables for a protocol and a data set, the last part of the path ``data``.

    Each has ``method``, by the paper's own name, ``source``, the metrics, and ``N``, None where the paper does not
    state it; SPRec's is read off its fractions (0.0347 = 34/980).
    """
    name, protocol = data.rstrip("/").rpartition("/")[2].lower(), protocol if protocol == "candidates" else "open"
    tables = json.loads((files("rayrec.compare") / "published.json").read_text(encoding="utf-8"))
    return [
        {"method": method} | {n: table[n] for n in ("source", "N")} | dict(zip(table["metrics"], values, strict=True))
        for table in tables
        if table["protocol"] == protocol and name in table["data"]
        for method, values in table["methods"].items()
    ]
