"""Counts of the rejected answers of an iteration."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.catalogue import Catalogue
from rayrec.data.schema import places
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
        """Count a slice: rows of schema.NEGATIVES, and all examples that they are for, those without a row included.

        Of ``outputs``, the policy's answers, the best K are counted. Without outputs (samplers that ask no policy) the
        ``raw`` of the rows counts, or their ``text`` where that is null.
        """
        if outputs is None:
            owners, texts = table["example_id"], pc.call_function("coalesce", [table["raw"], table["text"]])
        else:
            options = pc.ListSliceOptions(0, self._k, return_fixed_size_list=False)
            best = pc.call_function("list_slice", [outputs["texts"].combine_chunks()], options)
            of_best = pc.call_function("list_parent_indices", [best])
            owners, texts = outputs["example_id"].combine_chunks().take(of_best), best.flatten()
        owner = places(owners, examples["example_id"])
        text, target = numbered(texts, self._numbers), numbered(examples["target"], self._numbers)[owner]
        history = examples["history"].combine_chunks()
        touched = np.repeat(np.arange(len(examples)), history.value_lengths().to_numpy())
        touched = touched << 32 | numbered(history.flatten(), self._numbers)
        self._different.update(np.unique(text).tolist())
        drawn = pc.call_function("equal", [table["sampler"], "random"]).to_numpy()
        self._count.update(
            rows=len(table),
            outputs=len(text),
            equal_target=int((text == target).sum()),
            in_catalogue=int(((text > 0) & (text < self._known)).sum()),
            in_history=int(np.isin(owner << 32 | text, touched).sum()),
            empty=int((text == 0).sum()),
            random=int(drawn.sum()),
            replaced=int((drawn & table["raw"].is_valid().to_numpy()).sum()),
            dropped=self._k * len(examples) - len(table),
        )

    def result(self) -> dict[str, Any]:
        """Return the counts; titles are compared after :func:`rayrec.data.text.fold`.

        ``rows`` in the tables and ``outputs`` described; ``equal_target``, ``in_catalogue``, ``in_history`` and
        ``empty``, shares of the outputs (None where there are none); ``distinct``, the number of different outputs;
        ``random``, rows whose text the random sampler made; ``replaced``, those of them that replace an output that
        was empty or equal to the target; ``dropped``, pairs left out, K·examples − rows.
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
