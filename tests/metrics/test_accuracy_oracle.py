"""HR and NDCG row by row against ir_measures (trec_eval's code), on random lists."""

from __future__ import annotations

import ir_measures
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.metrics import METRICS, answers

_ROW = st.tuples(st.sampled_from("ABCDEFGH"), st.lists(st.sampled_from("ABCDEFGH"), unique=True, max_size=8))


@settings(max_examples=40)
@given(st.lists(_ROW, min_size=1, max_size=12), st.integers(1, 9))
def test_hits_and_gains_equal_the_oracle(tables, rows, k):
    predictions, _ = tables([{"target": target, "titles": titles} for target, titles in rows])
    qrels = [ir_measures.Qrel(f"e{i}", target, 1) for i, (target, _) in enumerate(rows)]
    run = [
        ir_measures.ScoredDoc(f"e{i}", title, -place)
        for i, (_, titles) in enumerate(rows)
        for place, title in enumerate(titles)
    ]
    measures = {"Success": ir_measures.Success @ k, "nDCG": ir_measures.nDCG @ k}
    expected = {name: np.zeros(len(rows)) for name in measures}  # a query without a list has no value and counts 0
    for value in ir_measures.iter_calc(list(measures.values()), qrels, run):
        name = next(name for name, measure in measures.items() if measure == value.measure)
        expected[name][int(value.query_id[1:])] = value.value
    for name, measure in (("HR", "Success"), ("NDCG", "nDCG")):
        of_rows = METRICS[name].of_rows
        assert of_rows
        np.testing.assert_allclose(of_rows(answers(predictions), k), expected[measure], rtol=1e-12)
