import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data import schema
from rayrec.data.windows import SPLITS, borders, cut, ready


def interactions(rows):
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * 4
    return pa.table(
        [pa.array(c, f.type) for c, f in zip(columns, schema.INTERACTIONS, strict=True)], schema.INTERACTIONS
    )


def test_windows_by_hand():
    # user u: a(1) b(2) c(2) d(3) e(9); user v: only two, too short for a history of two
    rows = [("u", "b", 4.0, 2), ("u", "a", 3.0, 1), ("u", "c", None, 2), ("v", "a", 1.0, 1), ("v", "e", 1.0, 8)]
    rows += [("u", "d", 2.0, 3), ("u", "e", 5.0, 9)]
    made = cut(interactions(rows), 2)
    train, valid, test = (made.splits[name].to_pylist() for name in SPLITS)
    assert [(row["history"], row["target"], row["timestamp"]) for row in train] == [(["a", "b"], "c", 2)]
    assert train[0]["history_ratings"] == [3.0, 4.0]
    assert train[0]["target_rating"] is None
    assert [(row["history"], row["target"], row["target_rating"]) for row in valid] == [(["b", "c"], "d", 2.0)]
    assert [(row["history"], row["target"]) for row in test] == [(["c", "d"], "e")]
    assert [row["example_id"] for row in train + valid + test] == ["train-000000", "valid-000000", "test-000000"]
    # before the validation border (time 3): u's a, b, c and v's a; v's e at 8 is of the test time
    assert sorted(made.training_titles.to_pylist()) == ["a", "a", "b", "c"]
    assert made.counts == {
        "users": 2,
        "users_too_short": 1,
        "dropped_rows_of_short_users": 2,
        "rows_only_in_histories": 2,
    }


def test_borders_fall_between_times_nearest_to_eight_to_one_to_one():
    assert borders(np.arange(100)) == (80, 90)
    # windows 70..84 share a time: the group's end (85) is nearer to 80 than its start (70); then 90
    times = np.arange(100)
    times[70:85] = 70
    assert borders(times) == (85, 90)
    # three times: 50 + 49 + 1; the only possible borders are 50 and 99
    assert borders(np.repeat([1, 2, 3], [50, 49, 1])) == (50, 99)
    with pytest.raises(ValueError, match=r"2 different times, wanted at least 3 .* --split leave_last_two"):
        borders(np.repeat([1, 2], 50))


@st.composite
def logs(draw):
    users = draw(st.integers(1, 4))
    rows = draw(st.lists(st.tuples(st.integers(0, users), st.integers(0, 12)), min_size=8, max_size=60))
    # every interaction has its own title, so that a title says which row it is
    return [(f"u{user}", f"{place}", None, time) for place, (user, time) in enumerate(rows)]


@settings(max_examples=60)
@given(logs(), st.integers(1, 3))
def test_no_later_row_enters_training(rows, history):
    time = {title: when for _, title, _, when in rows}
    try:
        made = cut(interactions(rows), history)
    except ValueError:
        past = {user: sorted(r[3] for r in rows if r[0] == user)[history:] for user in {r[0] for r in rows}}
        assert len({when for times in past.values() for when in times}) < 3
        return
    splits = {name: made.splits[name].to_pylist() for name in SPLITS}
    held = {row["target"] for name in ("valid", "test") for row in splits[name]}
    begin = min(time[title] for title in held)
    for row in splits["train"]:
        assert not held & {*row["history"], row["target"]}
        assert all(time[title] < begin for title in (*row["history"], row["target"]))
    assert sorted(made.training_titles.to_pylist()) == sorted(t for t, when in time.items() if when < begin)
    assert max(r["timestamp"] for r in splits["valid"]) < min(r["timestamp"] for r in splits["test"])
    every = [row for name in SPLITS for row in splits[name]]
    assert len({row["example_id"] for row in every}) == len(every)
    order = {title: place for place, (_, title, _, _) in enumerate(rows)}
    for row in every:
        mine = sorted((t for u, t, _, _ in rows if u == row["user"]), key=lambda t: (time[t], order[t]))
        at = mine.index(row["target"])
        assert row["history"] == mine[at - history : at]
    counts = made.counts
    assert len(rows) == len(every) + counts["rows_only_in_histories"] + counts["dropped_rows_of_short_users"]


def test_users_without_a_past_are_refused():
    with pytest.raises(ValueError, match=r"longest has 2 interactions, wanted more than 2\. Lower --history"):
        cut(interactions([("u", "a", None, 1), ("u", "b", None, 2)]), 2)
    with pytest.raises(ValueError, match="longest has 0"):
        cut(interactions([]), 2)


def test_ready_windows_keep_the_most_recent_titles():
    frame = pl.DataFrame(
        {
            "split": ["train", "train", "valid", "test", "test"],
            "user": ["1", "2", "3", "4", "5"],
            "timestamp": [1, 3, 1, 1, 2],
            "history": [["a"], ["a", "b", "c"], ["a"], ["b", "c"], ["q"]],
            "target": ["b", "d", "c", "d", "z"],
        }
    )
    with pytest.raises(ValueError, match=r"1 of 2 test rows are train rows too, .* after 'c' asks for 'd'.* drop"):
        ready(frame, 2)
    made = ready(frame, 2, drop=True)
    assert made.splits["test"]["target"].to_pylist() == ["z"]
    train = made.splits["train"].to_pylist()
    assert [row["history"] for row in train] == [["a"], ["b", "c"]]
    assert [row["example_id"] for row in train] == ["train-000001", "train-000003"]
    # history and target of both training rows, after cutting: a b + b c d
    assert sorted(made.training_titles.to_pylist()) == ["a", "b", "b", "c", "d"]
    again = {"test_rows_also_in_train": 1, "valid_rows_also_in_train": 0, "valid_rows_also_in_test": 0}
    assert made.counts == {"users": 4} | again  # b, c → d
    with pytest.raises(ValueError, match="valid split has no rows"):
        ready(frame.filter(pl.col("split") != "valid"), 2, drop=True)


@pytest.mark.parametrize("other", ["train", "test"])
def test_a_validation_row_is_no_training_or_test_row(other):
    rows = {"train": ["t", "u"], "valid": ["v", other[0] + "o"], "test": ["w", "x"]}
    rows[other].append(other[0] + "o")
    flat = [(split, str(n), n, ["h"], title) for split, titles in rows.items() for n, title in enumerate(titles)]
    frame = pl.DataFrame(flat, ["split", "user", "timestamp", "history", "target"], orient="row")
    with pytest.raises(ValueError, match=f"1 of 2 valid rows are {other} rows too.*--bad-rows drop"):
        ready(frame, 2)
    made = ready(frame, 2, drop=True)
    assert made.splits["valid"]["target"].to_pylist() == ["v"]
    assert made.splits[other]["target"].to_pylist() == rows[other]
    assert made.counts[f"valid_rows_also_in_{other}"] == 1


def log_of(sizes, ratings=None):
    """Users whose titles say whose they are and when: user 1's third is ``1-2``; times are distinct."""
    rows = [(f"u{u}", f"{u}-{n}", None, 100 * n + u) for u, size in enumerate(sizes) for n in range(size)]
    return interactions(rows)


def test_the_last_two_of_every_user_are_left_out():
    made = cut(log_of([5, 3, 2, 4]), history=2, split="leave_last_two", least=1)
    named = {name: [(row["history"], row["target"]) for row in made.splits[name].to_pylist()] for name in SPLITS}
    assert named["test"] == [(["3-1", "3-2"], "3-3"), (["0-2", "0-3"], "0-4")]  # in the order of time
    assert named["valid"] == [(["3-0", "3-1"], "3-2"), (["0-1", "0-2"], "0-3")]
    assert named["train"] == [(["0-0"], "0-1"), (["3-0"], "3-1"), (["0-0", "0-1"], "0-2")]
    assert made.counts["users_too_short"] == 2 and made.counts["dropped_rows_of_short_users"] == 5
    shown = set(made.training_titles.to_pylist())
    assert not shown & {"0-3", "0-4", "3-2", "3-3"} and {"0-2", "3-1"} <= shown
    with pytest.raises(ValueError, match=r"longest has 3 interactions, wanted more than 3\. Name other data"):
        cut(log_of([3, 3]), 2, "leave_last_two", 1)


@pytest.mark.parametrize("targets", ["last", "all"])
def test_users_are_split_by_their_last_interaction(targets):
    made = cut(log_of([4] * 20), history=10, split="sequences", least=2, targets=targets)
    users = {name: set(made.splits[name]["user"].to_pylist()) for name in SPLITS}
    assert [len(users[name]) for name in SPLITS] == [16, 2, 2]
    assert users["test"] == {"u18", "u19"} and users["valid"] == {"u16", "u17"}  # who came last
    assert len(made.splits["train"]) == 32 and made.splits["train"]["history"][0].as_py() == ["0-0", "0-1"]
    assert len(made.splits["test"]) == (2 if targets == "last" else 4)
    if targets == "last":
        assert made.splits["test"]["history"].to_pylist() == [["18-0", "18-1", "18-2"], ["19-0", "19-1", "19-2"]]
    seen = {title.split("-")[0] for title in made.training_titles.to_pylist()}
    assert seen == {str(u) for u in range(16)}
    with pytest.raises(ValueError, match="2 users with a past long enough, wanted at least 3"):
        cut(log_of([4] * 2), 10, "sequences", 2)


def test_a_history_is_as_long_as_the_past_and_no_longer_than_asked():
    made = cut(log_of([9] * 4), history=5, split="time", least=2)
    rows = pa.concat_tables(made.splits.values()).to_pylist()
    assert len(rows) == 4 * 7
    for row in rows:
        user, place = map(int, row["target"].split("-"))
        assert row["history"] == [f"{user}-{n}" for n in range(max(0, place - 5), place)]
