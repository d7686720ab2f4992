"""The log-probabilities of rejected answers that no policy wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from rayrec.data import schema
from rayrec.negatives.draw import Draw

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue

#: How a sampler that asks no policy makes its rows.
Finish = Callable[[pa.Table, pa.Table | None, "Catalogue", Draw], pa.Table]


def titles_of(finish: Finish, examples: pa.Table, catalogue: Catalogue, draw: Draw) -> list[list[str]]:
    """Return the rejected titles of each row, which the policy is to score."""
    titles: dict[str, list[str]] = {name: [] for name in examples["example_id"].to_pylist()}
    for row in finish(examples, None, catalogue, draw).select(["example_id", "text"]).to_pylist():
        titles[row["example_id"]].append(row["text"])
    return list(titles.values())


def scored_table(
    finish: Finish, examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw
) -> pa.Table:
    """Return the rows of ``finish`` with the log-probabilities of ``outputs``, which holds :func:`titles_of` scored."""
    assert outputs is not None, "the policy scores the titles first"
    scores = dict(zip(outputs["example_id"].to_pylist(), map(iter, outputs["logprobs"].to_pylist()), strict=True))
    made = finish(examples, None, catalogue, draw)
    logprobs = [next(scores[name]) for name in made["example_id"].to_pylist()]
    place = schema.NEGATIVES.get_field_index("logprob")
    return made.set_column(place, schema.NEGATIVES.field(place), pa.array(logprobs, pa.float32()))
