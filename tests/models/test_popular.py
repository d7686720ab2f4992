"""Popular: the most popular items without the user's own, ties by item index."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrec.data.catalogue import Catalogue
from rayrec.models.popular import popular_lists


def test_lists_by_hand():
    catalogue = Catalogue.from_items("ABCDE", [[]] * 5).with_training(np.array([1, 7, 7, 0, 9]), [])
    examples = pa.table({"history": [["A"], ["E", "B"], list("ABCDE"), ["not in the catalogue"]]})
    # By popularity: E 9, B 7, C 7, A 1, D 0.
    assert popular_lists(examples, catalogue, 3) == [["E", "B", "C"], ["C", "A", "D"], [], ["E", "B", "C"]]
    assert popular_lists(examples.slice(0, 1), catalogue, 9) == [["E", "B", "C", "D"]]
    assert popular_lists(examples.slice(0, 0), catalogue, 3) == []
