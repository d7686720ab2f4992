"""Yes-or-no rows: will this user like this title (TALLRec)?"""

import numpy as np
import pyarrow as pa

from rayrec.data import schema
from rayrec.data.candidates import LeftOut
from rayrec.data.catalogue import Catalogue
from rayrec.data.mapped import each
from rayrec.seeds import seed_of

#: The answers.
YES, NO = "Yes", "No"
#: Titles rated above this are liked.
MIDDLE = 3.0


def liking_rows(rows: pa.Table, touched: LeftOut, catalogue: Catalogue, seed: int) -> pa.Table:
    """Return a question for every row, and its answer: schema.EXAMPLES with one candidate, and YES or NO as target.

    Where the target is rated, it is asked about, and liked above 3. Without a rating it is liked, and a second question
    is about a title that the user never ``touched``, drawn with ``seed``.
    """

    def questions(some: pa.Table) -> pa.Table:
        made = []
        for row in some.to_pylist():
            rating, title = row["target_rating"], row["target"]
            liked = rating is None or rating > MIDDLE
            made.append(row | {"candidates": [title], "target": YES if liked else NO})
            if rating is None:
                draw = np.random.default_rng(seed_of(seed, "liking", row["example_id"]))
                known = {*touched.get(row["user"], ()), *row["history"], title} & catalogue.index.keys()
                while (other := catalogue.titles[int(draw.integers(len(catalogue)))]) in known:
                    if len(known) >= len(catalogue):
                        raise ValueError(
                            f"User {row['user']} met the whole catalogue. Take a larger one, or rated data."
                        )
                made.append(row | {"example_id": f"{row['example_id']}-no", "candidates": [other], "target": NO})
        return pa.Table.from_pylist(made, schema=schema.EXAMPLES)

    return each(rows, questions)


def one_by_one(rows: pa.Table) -> pa.Table:
    """Return every row (schema.EXAMPLES) once for each of its candidates, with that one alone."""

    def spread(some: pa.Table) -> pa.Table:
        lists = some["candidates"].to_pylist()
        table = some.take(np.repeat(np.arange(len(some)), list(map(len, lists))))
        return schema.with_column(table, "candidates", [[title] for one in lists for title in one])

    return each(rows, spread)
