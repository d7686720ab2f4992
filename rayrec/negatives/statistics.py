"""Counts of the rejected answers of an iteration."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayrec.data.text import fold
from rayrec.negatives.draw import contexts

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue


class Statistics:
    """Counts a policy's outputs and the rows made of them, slice by slice of the examples."""

    def __init__(self, catalogue: Catalogue, k: int):
        """``k``: rejected answers that each example was to have."""
        self._known, self._k = set(map(fold, catalogue.titles)), k
        self._count, self._different = Counter[str](), set[str]()

    def add(self, table: pa.Table, examples: pa.Table, outputs: pa.Table | None) -> None:
        """Count a slice.

        Args:
            table: rows of schema.NEGATIVES.
            examples: all examples that they are for, those without a row included.
            outputs: the policy's answers to these, of which the best K are counted. Without outputs (samplers that ask
                no policy) the ``raw`` of the rows counts, or their ``text`` where that is null.
        """
        context = {
            row["example_id"]: (fold(row["target"]), set(map(fold, row["history"]))) for row in contexts(examples)
        }
        written = _written(table, outputs, self._k)
        self._different.update(text for _, text in written)
        sampler, raw = table["sampler"].to_pylist(), table["raw"].to_pylist()
        self._count.update(
            rows=table.num_rows,
            outputs=len(written),
            equal_target=sum(text == context[example_id][0] for example_id, text in written),
            in_catalogue=sum(text in self._known for _, text in written),
            in_history=sum(text in context[example_id][1] for example_id, text in written),
            empty=sum(not text for _, text in written),
            random=sampler.count("random"),
            replaced=sum(name == "random" and text is not None for name, text in zip(sampler, raw, strict=True)),
            dropped=self._k * examples.num_rows - table.num_rows,
        )

    def result(self) -> dict[str, Any]:
        """Return the counts.

        ``rows`` in the tables and ``outputs`` described; ``equal_target``, ``in_catalogue``, ``in_history`` and
        ``empty``, shares of the outputs (None where there are none); ``distinct``, the number of different outputs;
        ``random``, rows whose text the random sampler made; ``replaced``, those of them that stand for an output that
        was empty or equal to the target; ``dropped``, pairs left out, K·examples − rows. Titles are compared after
        :func:`rayrec.data.text.fold`.
        """
        count = self._count
        shares = ("equal_target", "in_catalogue", "in_history", "empty")
        return {
            "rows": count["rows"],
            "outputs": count["outputs"],
            **{name: count[name] / count["outputs"] if count["outputs"] else None for name in shares},
            "distinct": len(self._different),
            **{name: count[name] for name in ("random", "replaced", "dropped")},
        }


def _written(table: pa.Table, outputs: pa.Table | None, places: int) -> list[tuple[str, str]]:
    """Return (example id, folded text) of every output that counts."""
    if outputs is None:
        rows = table.select(["example_id", "raw", "text"]).to_pylist()
        return [(row["example_id"], fold(row["text"] if row["raw"] is None else row["raw"])) for row in rows]
    rows = outputs.select(["example_id", "texts"]).to_pylist()
    return [(row["example_id"], fold(text)) for row in rows for text in row["texts"][:places]]
