"""``group_beams``: a policy's titles in their order, the target among them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rayrec.data import preferences, schema
from rayrec.data.dataset import numbered
from rayrec.negatives import NEGATIVES
from rayrec.negatives.draw import Draw
from rayrec.negatives.group import group_table


def test_the_target_keeps_its_place(catalogue, examples, outputs) -> None:
    wrote = outputs(["H", "D", "B"], ["E", "A", "H"], ["A", "B", "C"], ["G", "H", "A"])
    ids = [[[ord(title), 2] for title in one] for one in wrote["texts"].to_pylist()]
    wrote = wrote.append_column("ids", pa.array(ids, schema.PREDICTIONS.field("ids").type))
    made = group_table(examples, wrote.slice(0, 4).take([3, 1, 0, 2]), catalogue, Draw(3, 0, 1, "00/sft"))
    schema.check(made, schema.NEGATIVES, "negatives")
    assert made["example_id"].to_pylist() == [f"e{i}" for i in range(4) for _ in range(3)]
    assert made["k"].to_pylist() == [0, 1, 2] * 4 and made["logprob"].to_pylist() == [0, -1, -2] * 4
    assert made["text"].to_pylist() == list("HDB" + "EAH" + "ABC" + "GHA") == made["raw"].to_pylist()
    assert made["ids"].to_pylist() == [[ord(title), 2] for title in made["text"].to_pylist()]
    assert {*made["sampler"].to_pylist()} == {"group_beams"} and {*made["policy"].to_pylist()} == {"00/sft"}
    # Joined as all negatives are: the target is the chosen title, and its group stands in the order of the beams.
    rows = numbered(examples)
    joined = preferences.pairs(rows, [preferences.with_numbers(made, rows)])
    assert joined["rejected"].to_pylist() == [list("HDB"), list("EAH"), list("ABC"), list("GHA")]
    assert joined["chosen"].to_pylist() == list("DEFG")


def test_slices_make_the_same_rows_and_what_is_missing_is_refused(catalogue, examples, outputs) -> None:
    wrote, draw = outputs(["H", "D"], ["E"], ["A", "B"], ["G", "H"]), Draw(2, 0, 1, "p")
    whole = group_table(examples, wrote, catalogue, draw)
    parts = [group_table(examples.slice(i, 2), wrote.slice(i, 2), catalogue, draw) for i in (0, 2)]
    assert whole.equals(pa.concat_tables(parts).combine_chunks()) and len(whole) == 7
    with pytest.raises(ValueError, match="Found no output for 4 examples"):
        group_table(examples, None, catalogue, draw)
    one = NEGATIVES["group_beams"]
    assert (one.decode, one.answers(16), one.groups) == ("beams", 16, True)
