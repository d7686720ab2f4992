"""Training rows: which examples, in which order, in which global batch.

Every row carries its ``step`` and ``slot``; the number of workers appears nowhere, so it cannot change the batches.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa

from rayrec.data import schema
from rayrec.seeds import seed_of


def draw(train: pa.Table, start: int, count: int, seed: int, name: str) -> pa.Table:
    """Rows ``start`` to ``start + count`` of an endless reading of ``train``: permutation after permutation.

    So rows repeat only after the split is used up (METHODS section 4, step 1). ``name`` separates independent readings.
    """
    rounds, taken = [], start
    while taken < start + count:
        turn, offset = divmod(taken, len(train))
        order = np.random.default_rng(seed_of(seed, name, turn)).permutation(len(train))
        rounds.append(order[offset : offset + start + count - taken])
        taken += len(rounds[-1])
    return train.take(np.concatenate(rounds) if rounds else np.zeros(0, dtype=np.int64))


def sft_rows(examples: pa.Table, batch: int, epochs: int, seed: int, name: str) -> pa.Table:
    """Rows (schema.PREFERENCES, nothing rejected) of an SFT phase: every example once per epoch."""
    rejected = pa.array([[]] * len(examples), schema.PREFERENCES.field("rejected").type)
    return _arrange(_base(examples, pa.nulls(len(examples), pa.string()), rejected), batch, epochs, seed, name)


def preference_rows(examples: pa.Table, negatives: pa.Table, batch: int, seed: int, name: str) -> pa.Table:
    """Rows (schema.PREFERENCES) that join examples with their rejected answers in the order of ``k``.

    Examples without a rejected answer are left out; the caller counts them (``len(examples) - distinct example_id``).
    """
    rejected: dict[str, list[tuple[int, str]]] = defaultdict(list)
    policy: dict[str, str] = {}
    for row in negatives.select(["example_id", "policy", "k", "text"]).to_pylist():
        rejected[row["example_id"]].append((row["k"], row["text"]))
        policy[row["example_id"]] = row["policy"]
    ids = examples.column("example_id").to_pylist()
    kept = [i for i, example in enumerate(ids) if example in rejected]
    texts = [[text for _, text in sorted(rejected[ids[i]])] for i in kept]
    made_by = pa.array([policy[ids[i]] for i in kept], pa.string())
    table = _base(examples.take(kept), made_by, pa.array(texts, schema.PREFERENCES.field("rejected").type))
    return _arrange(table, batch, 1, seed, name)


def _base(examples: pa.Table, policy: pa.Array, rejected: pa.Array) -> pa.Table:
    columns = {
        "example_id": examples.column("example_id"),
        "policy": policy,
        "history": examples.column("history"),
        "chosen": examples.column("target"),
        "rejected": rejected,
        "weight": pa.array(np.ones(len(examples), np.float32)),
    }
    return pa.table(columns)


def _arrange(table: pa.Table, batch: int, epochs: int, seed: int, name: str) -> pa.Table:
    """Shuffle per epoch and fill the last global batch with rows of weight 0."""
    if not len(table):
        raise ValueError(
            f"{name}: there is no row to train on. Draw more rows, or keep pairs with --equal-target next."
        )
    orders = [np.random.default_rng(seed_of(seed, name, epoch)).permutation(len(table)) for epoch in range(epochs)]
    order = np.concatenate(orders)
    padding = -len(order) % batch
    weight = np.concatenate([np.ones(len(order), np.float32), np.zeros(padding, np.float32)])
    place = np.arange(len(order) + padding)
    table = table.take(np.concatenate([order, np.repeat(order[-1:], padding)]))
    table = table.set_column(table.column_names.index("weight"), "weight", pa.array(weight))
    table = table.append_column("step", pa.array(place // batch, pa.int32()))
    return schema.check(table.append_column("slot", pa.array(place % batch, pa.int32())), schema.PREFERENCES, name)
