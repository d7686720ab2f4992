"""``group_beams``: the policy's best titles with their places, the target where it stands, for objectives of groups."""

import numpy as np
import pyarrow as pa

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue
from rayrec.negatives.draw import Draw
from rayrec.negatives.self_play import aligned


def group_table(examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw) -> pa.Table:
    """Return the titles that the policy's beams over the catalogue end in, best first, as rows of schema.NEGATIVES.

    Nothing is replaced or filled up. Raises ValueError: an example has no row in ``outputs``.
    """
    lists = aligned(examples, outputs)
    length = lists["texts"].value_lengths().to_numpy()
    owner = np.repeat(np.arange(len(length)), length)
    texts = lists["texts"].flatten()
    columns = {
        "example_id": examples["example_id"].combine_chunks().take(pa.array(owner)),
        "policy": pa.repeat(draw.policy, len(owner)),
        "k": pa.array(np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length), pa.int32()),
        "sampler": pa.repeat("group_beams", len(owner)),
        "text": texts,
        "raw": texts,
        "logprob": lists["logprobs"].flatten(),
        "ids": lists["ids"].flatten() if not lists["ids"].null_count else pa.nulls(len(texts), pa.list_(pa.int32())),
    }
    return schema.check(pa.table(columns), schema.NEGATIVES, "negatives")
