"""Catalogues that are given as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read_catalogue(path: str | Path) -> Any:
    """Return the catalogue of a Parquet or CSV file; ValueError: it is missing, or has other columns or rows."""
    import numpy as np
    import polars as pl

    from rayrec.data.catalogue import Catalogue

    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"catalogue {path}: no such file. Name a Parquet or CSV file with a column `title`.")
    try:
        table = pl.read_csv(file, infer_schema=False) if file.suffix == ".csv" else pl.read_parquet(file)
        if "title" not in table.columns:
            raise ValueError(f"catalogue {path}: found columns {table.columns}, wanted `title`. Rename the column.")
        titles = table["title"].cast(pl.String).to_list()
        counts = np.zeros(len(titles), np.int64)
        if "popularity" in table.columns:
            counts = table["popularity"].cast(pl.Int64).fill_null(0).to_numpy()
    except pl.exceptions.PolarsError as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"catalogue {path}: not readable ({why}). Write Parquet, or CSV in UTF-8, with texts in `title` and whole "
            "numbers in `popularity`."
        ) from error
    if None in titles or len(set(titles)) < len(titles):
        raise ValueError(f"catalogue {path}: a title is empty or comes twice. Remove that row.")
    return Catalogue.from_items(titles, [()] * len(titles)).with_training(counts, [])
