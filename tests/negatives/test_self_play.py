"""self_play: every rule for outputs that equal the target, are empty, repeat, or are too few."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rayrec.data import schema
from rayrec.grounding import TitleEmbedder
from rayrec.negatives.draw import Draw
from rayrec.negatives.self_play import finish_self_play
from tests.negatives.conftest import statistics


def _rows(table, example_id):
    return [row for row in table.to_pylist() if row["example_id"] == example_id]


def test_text_is_taken_raw(catalogue, examples, outputs):
    table = finish_self_play(
        examples, outputs(["H"], ["Ghost"], [' odd, "text" '], ["A"]), catalogue, Draw(1, 0, 0, "p0")
    )
    assert table.schema == schema.NEGATIVES
    assert table["text"].to_pylist() == table["raw"].to_pylist() == ["H", "Ghost", ' odd, "text" ', "A"]
    assert set(table["sampler"].to_pylist()) == {"self_play"} and set(table["policy"].to_pylist()) == {"p0"}


def test_equal_target_and_empty_give_way_to_the_next_beam_else_to_random(catalogue, examples, outputs):
    wrote = outputs(["D", "H"], ["E"], ["", "  "], ["G\n", "", "B"])
    table = finish_self_play(examples, wrote, catalogue, Draw(1, 0, 0, "p"))
    assert [(row["sampler"], row["raw"]) for row in table.to_pylist()] == [
        ("self_play", "H"),
        ("random", "E"),
        ("random", ""),
        ("self_play", "B"),
    ]
    allowed = set("DFGH"), set("DEGH")  # not the history, not the target
    assert table["text"][1].as_py() in allowed[0] and table["text"][2].as_py() in allowed[1]
    assert table["logprob"].to_pylist() == [-1, 0, 0, -2]


def test_dropped_pairs_leave_no_row(catalogue, examples, outputs):
    wrote = outputs(["D", "H"], ["H"], ["F"], [""])
    table = finish_self_play(examples, wrote, catalogue, Draw(1, 0, 0, "p", equal_target="drop"))
    assert [(row["example_id"], row["sampler"]) for row in table.to_pylist()] == [("e1", "self_play"), ("e3", "random")]
    assert statistics([(table, examples, wrote)], catalogue, 1) == {
        "rows": 2,
        "outputs": 4,  # the best of each example: D, H, F and the empty one
        "equal_target": 2 / 4,
        "in_catalogue": 3 / 4,
        "in_history": 0,
        "empty": 1 / 4,
        "distinct": 4,
        "random": 1,
        "replaced": 1,
        "dropped": 2,
    }


def test_repeated_outputs_count_once_and_open_places_are_filled(catalogue, examples, outputs):
    wrote = outputs(["H", "H ", "G", "E"], ["H", "E"], ["H"], ["A", "B", "C", "H"])
    table = finish_self_play(examples, wrote, catalogue, Draw(3, 0, 0, "p"))
    assert [row["text"] for row in _rows(table, "e0")] == ["H", "G", "E"]
    second = _rows(table, "e1")
    assert [(row["sampler"], row["raw"]) for row in second] == [("self_play", "H"), ("random", "E"), ("random", None)]
    assert all(len({row["text"] for row in _rows(table, f"e{i}")}) == 3 for i in range(4))
    assert [row["k"] for row in table.to_pylist()] == [0, 1, 2] * 4
    found = statistics([(table, examples, wrote)], catalogue, 3)
    # The best three of each: H H G, H E, H, A B C. Of these 9 E equals its target and A B C are in the history.
    assert (found["outputs"], found["equal_target"], found["in_history"], found["distinct"]) == (9, 1 / 9, 3 / 9, 6)
    assert (found["random"], found["replaced"], found["dropped"]) == (4, 1, 0)


def test_an_output_with_other_space_is_not_drawn_again(catalogue, examples, outputs):
    wrote = outputs(["\u00a0H "], ["\u00a0H "], ["\u00a0H "], ["\u00a0H "])
    table = finish_self_play(examples, wrote, catalogue, Draw(4, 0, 0, "p"))
    assert {row["text"].strip() for row in _rows(table, "e0")} == {"H", "E", "F", "G"}
    assert all(len({row["text"].strip() for row in _rows(table, f"e{i}")}) == 4 for i in range(4))


def test_drop_leaves_the_place_of_the_target_empty(catalogue, examples, outputs):
    wrote = outputs(["D", "H", "G"], ["H", "G"], ["H", "G"], ["H", "F"])
    table = finish_self_play(examples, wrote, catalogue, Draw(2, 0, 0, "p", equal_target="drop"))
    assert [(row["k"], row["text"]) for row in _rows(table, "e0")] == [(0, "H")]
    assert statistics([(table, examples, wrote)], catalogue, 2)["dropped"] == 1
    every = finish_self_play(examples, outputs(*[[t, "H"] for t in "DEFG"]), catalogue, Draw(2, 0, 0, "p", "drop"))
    found = statistics([(every, examples, outputs(*[[t, "H"] for t in "DEFG"]))], catalogue, 2)
    assert (found["outputs"], found["dropped"], len(every)) == (8, 4, 4)


def test_samples_are_kept_as_they_were_drawn(catalogue, examples, outputs):
    wrote = outputs(["H", "H", "H"], ["H", "E", "H"], ["H"] * 3, ["H"] * 3)
    table = finish_self_play(examples, wrote, catalogue, Draw(3, 0, 0, "p"), "self_play_sample")
    assert [row["text"] for row in _rows(table, "e0")] == ["H"] * 3
    assert [(row["sampler"], row["raw"]) for row in _rows(table, "e1")] == [
        *[("self_play_sample", "H")] * 2,
        ("random", "E"),
    ]


def test_grounding_replaces_text_and_keeps_raw(catalogue, examples, outputs):
    draw = Draw(1, 0, 0, "p", embedder=TitleEmbedder(catalogue.titles))
    table = finish_self_play(examples, outputs([" h"], ["H"], ["f"], [""]), catalogue, draw)
    assert table["raw"].to_pylist() == [" h", "H", "f", ""]
    assert table["text"].to_pylist()[:2] == ["H", "H"]
    # f is grounded to F, its example's target, and the empty text to nothing: both are replaced.
    assert table["sampler"].to_pylist() == ["self_play", "self_play", "random", "random"]


def test_the_result_does_not_depend_on_the_partition(catalogue, examples, outputs):
    wrote, draw = outputs(["D"], ["E"], ["H"], [""]), Draw(2, 5, 1, "p")
    whole = finish_self_play(examples, wrote, catalogue, draw)
    halves = [(examples.slice(i, 2), wrote.slice(i, 2)) for i in (0, 2)]
    parts = [(finish_self_play(*half, catalogue, draw), *half) for half in halves]
    assert pa.concat_tables([made for made, _, _ in parts]).equals(whole)
    found = statistics(parts, catalogue, 2)
    assert found == statistics([(whole, examples, wrote)], catalogue, 2)
    assert (found["outputs"], found["equal_target"], found["empty"], found["distinct"]) == (4, 2 / 4, 1 / 4, 4)


def test_examples_without_output_are_refused(catalogue, examples, outputs):
    with pytest.raises(ValueError, match="no output for 2 examples, the first e2"):
        finish_self_play(examples, outputs(["H"], ["H"]), catalogue, Draw(1, 0, 0, "p"))


def test_statistics_without_outputs_describe_the_rows(catalogue, examples, outputs):
    table = finish_self_play(examples, outputs(["D"], ["A"], ["H"], ["Ghost"]), catalogue, Draw(1, 0, 0, "p"))
    found = statistics([(table, examples, None)], catalogue, 1)
    assert (found["equal_target"], found["in_catalogue"], found["in_history"]) == (1 / 4, 3 / 4, 1 / 4)
    nothing = statistics([(table.slice(0, 0), examples.slice(0, 0), None)], catalogue, 1)
    assert (nothing["rows"], nothing["equal_target"], nothing["dropped"]) == (0, None, 0)


def test_ids_are_kept_of_texts_that_the_policy_wrote(catalogue, examples, outputs):
    wrote = outputs(["H", "A"], ["E", "B"], ["E"], ["", " B "])
    ids = [[[100 * i + place] for place in range(len(texts))] for i, texts in enumerate(wrote["texts"].to_pylist())]
    wrote = wrote.append_column("ids", pa.array(ids, schema.PREDICTIONS.field("ids").type))
    table = finish_self_play(examples, wrote, catalogue, Draw(2, 0, 0, "p"))
    assert [(row["sampler"], row["ids"]) for row in table.to_pylist()] == [
        *(("self_play", [0]), ("self_play", [1])),
        *(("self_play", [101]), ("random", None)),
        *(("self_play", [200]), ("random", None)),
        *(("self_play", [301]), ("random", None)),
    ]
    grounded = finish_self_play(examples, wrote, catalogue, Draw(1, 0, 0, "p", embedder=TitleEmbedder("ABCDEFGH")))
    assert list(zip(grounded["text"].to_pylist(), grounded["ids"].to_pylist(), strict=True))[::3] == [
        ("H", [0]),
        ("B", None),  # as " B " was written
    ]
