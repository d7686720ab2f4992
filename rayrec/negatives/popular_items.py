"""``popular``: as ``random``, with probability in proportion to popularity in the training split (RosePO)."""

import numpy as np
import pyarrow as pa

from rayrec.data.catalogue import Catalogue
from rayrec.negatives.draw import Draw, contexts, table, too_few


def popular_table(examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw) -> pa.Table:
    """Draw ``draw.k`` items for each example without replacement, those of popularity 0 last.

    ``outputs`` is not read. ValueError: fewer items are outside an example's history and target.
    """
    # Adding Gumbel noise to log p and taking the largest is drawing in proportion to p without replacement.
    log_I = np.where(catalogue.popularity > 0, np.log(np.maximum(catalogue.popularity, 1)), -1e3)
    rows = []
    for example in contexts(examples):
        key_I = log_I + draw.generator(example["example_id"]).gumbel(size=len(log_I))
        taken = [catalogue.index[t] for t in (*example["history"], example["target"]) if t in catalogue.index]
        key_I[taken] = -np.inf
        best = np.argsort(-key_I, kind="stable")[: draw.k]
        if len(best) < draw.k or np.isneginf(key_I[best]).any():
            raise too_few(example["example_id"], int(np.isfinite(key_I).sum()), draw.k)
        rows += draw.drawn(example["example_id"], "popular", [catalogue.titles[item] for item in best])
    return table(rows)
