"""evaluate: every number of a four-row table by hand, the empty cases, and the refusals."""

from __future__ import annotations

from math import log2

import pytest

from rayrec.data import schema
from rayrec.metrics import METRICS, answers, evaluate, evaluate_splits


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
            "HR_cold@1": 1.0,  # of the one row whose target is A
            "HR_cold@2": 1.0,
            "NDCG_cold@1": 1.0,
            "NDCG_cold@2": 1.0,
            "N_cold": 1,
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
    names = [name for name, metric in METRICS.items() if metric.when == "always"]
    assert [found[f"{name}@5"] for name in [*names, "filled"]] == [None] * (len(names) + 1)


def test_without_genre_mass_unfairness_is_undefined(tables, catalogue):
    found = evaluate(*tables([{"target": "A", "titles": ["D", "E"], "history": ["A"]}]), catalogue, (2,))
    assert (found["MGU@2"], found["DGU@2"], found["no_genre@2"]) == (None, None, 2)


def test_a_metric_of_rows_is_the_mean_of_those_that_count(tables):
    """Ranks 1, 2, none, none; ratings 5, 4, 1, unknown; the last row has no valid answer."""
    lists, ratings = [["A", "B"], ["B", "A"], ["B"], []], [5, 4, 1, None]
    rows = [
        {"target": "A", "titles": titles, "target_rating": rating}
        for titles, rating in zip(lists, ratings, strict=True)
    ]
    found = answers(*tables(rows))
    values = {name: metric.compute(found, 2) for name, metric in METRICS.items() if metric.of_rows}
    assert values == {
        "HR": 2 / 4,
        "NDCG": pytest.approx((1 + 1 / log2(3)) / 4),
        "ValidRatio": 3 / 4,
        "HR@1_liked": 1 / 2,
        "AvoidanceRate": 1.0,
        "AdherenceRate": 1 / 4,
        "LostMass": None,
        "LostTargets": None,
        "HR_cold": None,
        "NDCG_cold": None,
    }
    unrated = answers(*tables([{"target": "A", "titles": ["A"]}]))
    assert METRICS["HR@1_liked"].compute(unrated, 1) is METRICS["AvoidanceRate"].compute(unrated, 1) is None


def test_what_is_lost_on_the_way_to_titles_is_measured_where_it_can_be(tables, catalogue):
    """Of four targets the first is found, the second scores more than the list's last title, the third less."""
    rows = [{"target": title, "titles": ["A", "B"]} for title in ("A", "C", "D", "E")]
    predictions, examples = tables(rows)
    for name, values in (
        ("kept", [1.0, 0.5, None, 0.25]),
        ("target_logprob", [-1.0, -1.5, -3.0, None]),
        ("logprobs", [[-1.0, -2.0]] * 4),
    ):
        predictions = schema.with_column(predictions, name, values)
    found = evaluate(predictions, examples, catalogue, (2,))
    assert found["LostMass"] == pytest.approx(1 - 1.75 / 3)
    assert (found["LostTargets"], found["N_searched"]) == (pytest.approx(1 / 3), 3)
    older = predictions.drop_columns(["kept", "target_logprob"])
    assert not {"LostMass", "LostTargets"} & evaluate(older, examples, catalogue, (2,)).keys()


def test_targets_that_training_never_saw_have_metrics_of_their_own(tables, catalogue):
    """Of three rows with the target A one has it second and one not at all; a target outside is no cold one."""
    lists = [("A", ["B", "A"]), ("A", ["B", "C"]), ("B", ["B"]), ("A", ["A"]), ("Ghost", ["A"])]
    rows = [{"target": target, "titles": titles} for target, titles in lists]
    found = evaluate(*tables(rows), catalogue, (1, 2))
    assert found["N_cold"] == 3 and (found["HR_cold@1"], found["HR_cold@2"]) == pytest.approx((1 / 3, 2 / 3))
    assert found["NDCG_cold@2"] == pytest.approx((1 / log2(3) + 0 + 1) / 3)
    assert (found["HR@1"], found["HR@2"]) == (2 / 5, 3 / 5)
    seen = evaluate(*tables([rows[2]]), catalogue, (1,))
    assert seen["N_cold"] == 0 and not any("cold@" in name for name in seen)


def test_choices_add_their_metrics_after_all_others(tables, catalogue):
    rows = [{"target": "A", "titles": ["A"], "target_rating": 5}, {"target": "B", "titles": [], "target_rating": 1}]
    predictions, examples = tables(rows)
    plain, found = (
        evaluate(predictions, examples, catalogue, (1,)),
        evaluate(predictions, examples, catalogue, (1,), True),
    )
    assert list(found)[: len(plain)] == list(plain)
    assert list(found.items())[len(plain) :] == [
        ("ValidRatio", 0.5), ("HR@1_liked", 1.0), ("N_liked", 1), ("AvoidanceRate", 0.0), ("N_disliked", 1)
    ]  # fmt: skip
    later = tables([row | {"split": "adherence"} for row in rows])
    (record,) = evaluate_splits(later[0], {"adherence": later[1]}, catalogue, (1,), True)
    assert next(iter(record)) == "split" and list(record.items())[-1] == ("AdherenceRate", 0.5)
    assert "ValidRatio" not in record


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
