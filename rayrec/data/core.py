"""The k-core of a log: users and titles with k interactions or more, counted among themselves (RecPO)."""

import numpy as np
import pyarrow as pa

from rayrec.data.mapped import coded, take


def k_core(interactions: pa.Table, k: int) -> pa.Table:
    """Return the interactions (schema.INTERACTIONS) of the k-core, in their order.

    Users and titles with fewer than ``k`` interactions are left out until none has. ValueError: nothing is left.
    """
    sides = [coded(interactions[name])[0] for name in ("user", "title")]
    rows, before = np.arange(len(interactions)), -1
    while len(rows) != before:
        before = len(rows)
        for codes in sides:
            rows = rows[np.bincount(codes[rows], minlength=1)[codes[rows]] >= k]
    if not len(rows):
        raise ValueError(
            f"--k-core {k} leaves none of {len(interactions)} interactions: no users and titles have {k} each among "
            "themselves. Lower it, or name more data."
        )
    return take(interactions, rows)
