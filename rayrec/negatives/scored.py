"""Log-probabilities of rejected titles that the policy did not write itself (``--score-negatives``)."""

from collections import defaultdict
from collections.abc import Mapping

import pyarrow as pa

from rayrec.data.schema import with_column


def unscored(negatives: pa.Table) -> dict[str, list[str]]:
    """Return, by example, the titles without log π: drawn ones, and those that replace an output."""
    titles = defaultdict(list)
    for row in negatives.to_pylist():
        if _lacks(row):
            titles[row["example_id"]].append(row["text"])
    return dict(titles)


def with_scores(negatives: pa.Table, outputs: pa.Table) -> pa.Table:
    """Return the rows with log π of every ``text``; ``outputs`` holds the titles of :func:`unscored` scored."""
    scores = dict(zip(outputs["example_id"].to_pylist(), map(iter, outputs["logprobs"].to_pylist()), strict=True))
    rows = negatives.to_pylist()
    logprobs = [next(scores[row["example_id"]]) if _lacks(row) else row["logprob"] for row in rows]
    return with_column(negatives, "logprob", logprobs)


def _lacks(row: Mapping[str, str | float | None]) -> bool:
    return row["logprob"] is None or row["raw"] not in (None, row["text"])
