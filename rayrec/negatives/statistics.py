"""Counts of the rejected answers of an iteration."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.catalogue import Catalogue
from rayrec.data.text import fold, numbered


class Statistics:
    """Counts a policy's outputs and the rows made of them, slice by slice of the examples."""

    def __init__(self, catalogue: Catalogue, k: int):
        """``k``: rejected answers that each example was to have."""
        self._numbers = {"": 0}
        for title in catalogue.titles:
            self._numbers.setdefault(fold(title), len(self._numbers))
        self._known, self._k = len(self._numbers), k  # greater numbers are outside the catalogue
        self._count, self._different = Counter[str](), set[int]()

    def add(self, table: pa.Table, examples: pa.Table, outputs: pa.Table | None) -> None:
        """Count a slice.

        Args:
            table: rows of schema.NEGATIVES.
            examples: all examples that they are for, those without a row included.
            outputs: the policy's answers to these, of which the best K are counted. Without outputs (samplers that ask
                no policy) the ``raw`` of the rows counts, or their ``text`` where that is null.
        """
        owners, texts = _written(table, outputs, self._k)
        owner = pc.call_function("index_in", [owners], pc.SetLookupOptions(examples["example_id"])).to_numpy()
        owner = owner.astype(np.int64)
        text, target = numbered(texts, self._numbers), numbered(examples["target"], self._numbers)[owner]
        history = examples["history"].combine_chunks()
        met = np.repeat(np.arange(len(examples)), pc.call_function("list_value_length", [history]).to_numpy())
        met = met << 32 | numbered(history.flatten(), self._numbers)
        self._different.update(np.unique(text).tolist())
        drawn = pc.call_function("equal", [table["sampler"], "random"])
        self._count.update(
            rows=len(table),
            outputs=len(text),
            equal_target=int((text == target).sum()),
            in_catalogue=int(((text > 0) & (text < self._known)).sum()),
            in_history=int(np.isin(owner << 32 | text, met).sum()),
            empty=int((text == 0).sum()),
            random=_trues(drawn),
            replaced=_trues(pc.call_function("and", [drawn, table["raw"].is_valid()])),
            dropped=self._k * len(examples) - len(table),
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


def _written(table: pa.Table, outputs: pa.Table | None, places: int) -> tuple[Any, Any]:
    """Return the example id and the text of every output that counts."""
    if outputs is None:
        return table["example_id"], pc.call_function("coalesce", [table["raw"], table["text"]])
    lists = outputs["texts"].combine_chunks()
    best = pc.call_function("list_slice", [lists], pc.ListSliceOptions(0, places, return_fixed_size_list=False))
    owner = pc.call_function("list_parent_indices", [best])
    return outputs["example_id"].combine_chunks().take(owner), best.flatten()


def _trues(values: Any) -> int:
    return pc.call_function("sum", [values]).as_py() or 0
