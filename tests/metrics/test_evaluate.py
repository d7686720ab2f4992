"""evaluate: every number of a four-row table by hand, the empty cases, and the refusals."""

from __future__ import annotations

from math import log2

import pytest

from rayrec.metrics import METRICS, evaluate, per_row


def test_four_rows_by_hand(four_rows, catalogue):
    found = evaluate(*four_rows, catalogue, (1, 2))
    genres = found.pop("genres")
    assert found == pytest.approx(
        {
            "N": 4,
            "HR@1": 1 / 4,  # ranks 1, 2, none, none
            "HR@2": 2 / 4,
            "NDCG@1": 1 / 4,
            "NDCG@2": (1 + 1 / log2(3)) / 4,
            "DivRatio@1": 2 / 3,  # A, B, A
            "DivRatio@2": 4 / 6,  # A 2, B 2, C 1, D 1
            "ORRatio@1": 3 / 3,
            "ORRatio@2": (2 + 2 + 1) / 6,
            "filled@1": 3 / 4,
            "filled@2": 6 / 8,
            # histories: x = A + B/2 + A = 2.5, y = C + B/2 = 1.5
            # lists at 1: x = 2 + 1/2, y = 1/2; at 2: x = 2 + 2/2, y = 2/2 + 1
            "MGU@1": 2.5 / 3 - 2.5 / 4,
            "MGU@2": 2.5 / 4 - 3 / 5,
            "DGU@1": 2 * (2.5 / 3 - 2.5 / 4),
            "DGU@2": 2 * (2.5 / 4 - 3 / 5),
            "no_genre@1": 0,
            "no_genre@2": 1,  # D
            "empty": 1,
            "target_outside": 1,
            "history_outside": 1,
            "history_no_genre": 1,  # E
        }
    )
    assert genres["selected"] == ["x", "y"]
    assert genres["GH"] == pytest.approx({"x": 2.5 / 4, "y": 1.5 / 4})
    assert genres["GP@2"] == pytest.approx({"x": 3 / 5, "y": 2 / 5})


def test_predictions_are_joined_by_id_not_by_place(four_rows, catalogue):
    predictions, examples = four_rows
    shuffled = evaluate(predictions.take([2, 0, 3, 1]), examples, catalogue, (2,))
    assert shuffled == evaluate(predictions, examples, catalogue, (2,))


def test_lists_without_items_score_zero_and_leave_ratios_undefined(tables, catalogue):
    found = evaluate(*tables([{"target": "A", "titles": [], "history": ["A"]}] * 2), catalogue, (5,))
    assert (found["HR@5"], found["NDCG@5"], found["filled@5"], found["empty"]) == (0, 0, 0, 2)
    assert [found[f"{name}@5"] for name in ("DivRatio", "ORRatio", "MGU", "DGU")] == [None] * 4
    assert found["genres"]["GP@5"] is None


def test_no_rows_leave_every_metric_undefined(tables, catalogue):
    found = evaluate(*tables([]), catalogue, (5,))
    assert found["N"] == 0
    assert [found[f"{name}@5"] for name in [*METRICS, "filled"]] == [None] * (len(METRICS) + 1)


def test_without_genre_mass_unfairness_is_undefined(tables, catalogue):
    found = evaluate(*tables([{"target": "A", "titles": ["D", "E"], "history": ["A"]}]), catalogue, (2,))
    assert (found["MGU@2"], found["DGU@2"], found["no_genre@2"]) == (None, None, 2)


def test_rows_average_to_the_metrics(four_rows, catalogue):
    hits, gains = per_row(four_rows[0], 2)
    assert hits.tolist() == [1, 1, 0, 0]
    assert gains == pytest.approx([1, 1 / log2(3), 0, 0])


@pytest.mark.parametrize(
    ("titles", "message"), [(["A", "A"], "distinct"), (["A", "Ghost"], r"\['Ghost'\] are not in the catalogue")]
)
def test_lists_must_hold_distinct_catalogue_titles(tables, catalogue, titles, message):
    with pytest.raises(ValueError, match=message):
        evaluate(*tables([{"target": "A", "titles": titles}]), catalogue, (1,))


def test_tables_that_do_not_match_are_refused(four_rows, tables, catalogue):
    predictions, examples = four_rows
    with pytest.raises(ValueError, match=r"3 predictions .* for 4 examples"):
        evaluate(predictions.slice(1), examples, catalogue, (1,))
    with pytest.raises(ValueError, match=r"4 predictions \(3 distinct\)"):
        evaluate(predictions.take([0, 0, 1, 2]), examples, catalogue, (1,))
    with pytest.raises(ValueError, match="target"):
        evaluate(predictions, tables([{"target": "D", "titles": []}] * 4)[1], catalogue, (1,))
    with pytest.raises(ValueError, match="top_k"):
        evaluate(predictions, examples, catalogue, (0, 5))
