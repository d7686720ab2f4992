"""One draw of rejected answers: its settings, and the rows that samplers write."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rayrec.data import schema
from rayrec.data.candidates import Also
from rayrec.grounding import Embedder
from rayrec.seeds import seed_of


@dataclass(frozen=True)
class Draw:
    """One iteration's draw of ``k`` rejected answers per example, stamped with the ``policy`` it is made for."""

    k: int
    seed: int
    iteration: int
    policy: str
    equal_target: Literal["next", "drop"] = "next"
    embedder: Embedder | None = None  #: grounds self-play text; None leaves it raw
    #: For samplers that need ``touched``: titles that each user touched in the training split.
    touched: Mapping[str, frozenset[str]] = field(default_factory=dict)
    later: Also | None = None  #: for ``later``: titles that candidate sets list although the user touched them (RecPO)
    similar: Embedder | None = None  #: for ``embedder``: compares titles

    def generator(self, example_id: str) -> np.random.Generator:
        """Return the example's own generator: its draws depend on no other row, order or partition."""
        return np.random.default_rng(seed_of(self.seed, "negatives", self.iteration, example_id))

    def row(
        self, example_id: str, k: int, sampler: str, text: str, raw: str | None, logprob: float | None, ids: Any = None
    ) -> dict:
        """Return one row of schema.NEGATIVES."""
        names = schema.NEGATIVES.names
        return dict(zip(names, (example_id, self.policy, k, sampler, text, raw, logprob, ids), strict=True))

    def drawn(self, example_id: str, sampler: str, titles: Iterable[str]) -> list[dict]:
        """Return the rows of titles that no policy wrote or scored."""
        return [self.row(example_id, k, sampler, title, None, None) for k, title in enumerate(titles)]


def contexts(examples: pa.Table) -> list[dict]:
    """Return id, history and target of every example."""
    return examples.select(["example_id", "history", "target"]).to_pylist()


def table(rows: list[dict]) -> pa.Table:
    """Return ``rows`` as a table of schema.NEGATIVES."""
    return schema.check(pa.Table.from_pylist(rows, schema=schema.NEGATIVES), schema.NEGATIVES, "negatives")


def too_few(example_id: str, free: int, wanted: int) -> ValueError:
    """The error of an example that a sampler finds too few items for."""
    return ValueError(
        f"Example {example_id}: found {free} items outside the history and the target, wanted {wanted} negatives. "
        "Take fewer negatives or a larger catalogue."
    )
