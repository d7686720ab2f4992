"""What the rejected answers of an iteration are made of (METHODS section 3, last paragraph)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayrec.grounding import fold
from rayrec.negatives.draw import distinct

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue


def negative_statistics(
    table: pa.Table, examples: pa.Table, catalogue: Catalogue, k: int, outputs: pa.Table | None = None
) -> dict[str, Any]:
    """Count what a policy's outputs were and what became of them.

    Args:
        table: rows of schema.NEGATIVES.
        examples: all the examples that were drawn, those without a row in ``table`` included.
        k: rejected answers K that each of them was to have.
        outputs: what the policy wrote (see :func:`rayrec.negatives.finish_self_play`); its best K are described.
            Without it (a sampler that asks no policy) the ``raw`` of the rows is, or their ``text`` where null.

    Returns:
        ``rows`` in the table and ``outputs`` described; ``equal_target``, ``in_catalogue``, ``in_history`` and
        ``empty``, shares of the outputs (None where there are none); ``distinct``, the number of different outputs;
        ``random``, rows whose text the random sampler made; ``replaced``, those of them that stand for an output that
        was empty or equal to the target; ``dropped``, pairs left out, K·examples − rows. Titles are compared after
        :func:`rayrec.grounding.fold`.
    """
    context = {row["example_id"]: (fold(row["target"]), set(map(fold, row["history"]))) for row in distinct(examples)}
    written = _written(table, outputs, k)
    known = set(map(fold, catalogue.titles))
    sampler, raw = table["sampler"].to_pylist(), table["raw"].to_pylist()
    return {
        "rows": table.num_rows,
        "outputs": len(written),
        "equal_target": _share([text == context[example_id][0] for example_id, text in written]),
        "in_catalogue": _share([text in known for _, text in written]),
        "in_history": _share([text in context[example_id][1] for example_id, text in written]),
        "empty": _share([not text for _, text in written]),
        "distinct": len({text for _, text in written}),
        "random": sampler.count("random"),
        "replaced": sum(name == "random" and text is not None for name, text in zip(sampler, raw, strict=True)),
        "dropped": k * len(context) - table.num_rows,
    }


def _written(table: pa.Table, outputs: pa.Table | None, places: int) -> list[tuple[str, str]]:
    """(example id, folded text) of every output that is described."""
    if outputs is None:
        rows = table.select(["example_id", "raw", "text"]).to_pylist()
        return [(row["example_id"], fold(row["text"] if row["raw"] is None else row["raw"])) for row in rows]
    rows = outputs.select(["example_id", "texts"]).to_pylist()
    texts = {row["example_id"]: row["texts"][:places] for row in rows}
    return [(example_id, fold(text)) for example_id, best in texts.items() for text in best]


def _share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
