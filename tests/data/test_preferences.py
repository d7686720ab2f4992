"""Training rows: which examples are drawn, what is rejected beside them, and in which batch."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest

from rayrec.data import mapped, preferences, schema


@pytest.fixture(scope="module")
def examples() -> pa.Table:
    """Five examples, a to e, whose target is their letter in capitals."""
    rows = [
        {"example_id": name, "split": "train", "user": "u", "timestamp": i, "history": ["X"], "target": name.upper()}
        for i, name in enumerate("abcde")
    ]
    return pa.Table.from_pylist(rows, schema=schema.EXAMPLES).append_column("number", pa.array(range(5)))


def negatives(*rows: tuple[str, int, str]) -> pa.Table:
    columns = [
        {"example_id": example, "policy": f"of {example}", "k": k, "sampler": "random", "text": text}
        | {"number": "abcde".find(example)}
        for example, k, text in rows
    ]
    return pa.Table.from_pylist(columns, schema=schema.REJECTED)


def test_rows_repeat_only_after_the_split_is_used_up(examples: pa.Table) -> None:
    read = preferences.draw(examples, 0, 13, 0, "iterations")["example_id"].to_pylist()
    assert set(read[:5]) == set(read[5:10]) == set("abcde") and Counter(read).most_common()[-1][1] == 2
    assert preferences.draw(examples, 3, 4, 0, "iterations")["example_id"].to_pylist() == read[3:7]
    assert preferences.draw(examples, 0, 0, 0, "iterations").num_rows == 0


def test_distinct_keeps_the_first_of_each(examples: pa.Table) -> None:
    twice = examples.take([3, 1, 3, 0, 1])
    assert preferences.distinct(twice)["example_id"].to_pylist() == ["d", "b", "a"]
    assert preferences.distinct(examples) is examples
    assert preferences.distinct(examples.slice(0, 0)).num_rows == 0
    assert preferences.distinct(pa.concat_tables([examples.slice(4), examples]))["target"].to_pylist() == list("EABCD")


def test_pairs_are_joined_in_the_order_of_k(examples: pa.Table) -> None:
    mixed = negatives(("d", 1, "second"), ("a", 0, "only"), ("d", 0, "first"), ("gone", 0, "other"), ("d", 2, "third"))
    pairs = preferences.pair_up(examples.take([3, 1, 0, 3]), mixed)
    assert pairs["example_id"].to_pylist() == ["d", "a", "d"]  # b has nothing rejected
    assert pairs["rejected"].to_pylist() == [["first", "second", "third"], ["only"], ["first", "second", "third"]]
    assert pairs["policy"].to_pylist() == ["of d", "of a", "of d"]
    assert pairs["chosen"].to_pylist() == ["D", "A", "D"]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_draw_is_joined_by_number(examples: pa.Table, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(mapped, "SLICE", size)
    rows = preferences.draw(examples, 0, 12, 0, "iterations")
    wrong = [(name, k, f"{name}{k}") for name in "edba" for k in range(2)]  # c has nothing rejected
    whole = preferences.pair_up(rows, negatives(*wrong))
    assert len(whole) == 12 - rows["example_id"].to_pylist().count("c") > 8
    files = [negatives(*wrong[:3]), negatives(*wrong[3:]), negatives()]
    assert preferences.pairs(rows, files).equals(whole)
    assert preferences.pairs(rows, [negatives()]).num_rows == 0
    assert preferences.pairs(rows.slice(0, 5), files[::-1][:2]).num_rows == 3
    with pytest.raises(ValueError, match="are apart"):
        preferences.pairs(rows, [negatives(*wrong[:3]), negatives(*wrong)])


def test_nothing_rejected_is_no_pair(examples: pa.Table) -> None:
    pairs = preferences.pair_up(examples, negatives())
    assert pairs.num_rows == 0
    with pytest.raises(ValueError, match="02/prefer: there is no row to train on"):
        preferences.arrange(pairs, 4, 1, 0, "02/prefer")


def test_the_last_batch_is_filled_with_rows_that_weigh_nothing(examples: pa.Table) -> None:
    pairs = preferences.pair_up(examples, negatives(*[(name, 0, "no") for name in "abcde"]))
    table = preferences.arrange(pairs, 4, 2, 0, "01/prefer")
    assert table.schema == schema.PREFERENCES
    assert table["step"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4 and table["slot"].to_pylist() == [0, 1, 2, 3] * 3
    assert table["weight"].to_pylist() == [1] * 10 + [0, 0]
    assert set(table["example_id"].to_pylist()[:5]) == set("abcde") == set(table["example_id"].to_pylist()[5:10])
