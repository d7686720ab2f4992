import numpy as np
import pyarrow as pa
import pytest

from rayrec.data import load, schema
from rayrec.data.dataset import content_hash
from rayrec.data.settings import DataConfig


@pytest.fixture(scope="module")
def made():
    return load(DataConfig())


@pytest.fixture(scope="module")
def whole():
    return load(DataConfig(valid_rows=10**6, test_rows=10**6))


def test_samples_are_seeded_and_ordered_and_ids_do_not_depend_on_them(made, whole):
    again, other = load(DataConfig()), load(DataConfig(seed=1))
    assert made.content_hash == again.content_hash
    assert made.test.equals(again.test)
    assert made.train.equals(other.train)
    assert not made.test.equals(other.test)
    assert len(whole.test) == made.counts["test_windows"]
    ids = made.test["example_id"].to_pylist()
    assert ids == sorted(set(ids))
    rows = {row["example_id"]: row for row in whole.test.to_pylist()}
    assert all(rows[row["example_id"]] == row for row in made.test.to_pylist())


def test_tables_are_by_their_schemas(made):
    for name in ("train", "valid", "test"):
        table = getattr(made, name)
        own = table.drop_columns("number") if name == "train" else table
        assert own.schema == schema.EXAMPLES
        assert set(table["split"].to_pylist()) == {name}
    assert len(made.valid) == 256
    assert len(made.test) == 1000
    assert len(made.train) == made.counts["train"] >= 6000


def test_every_row_is_accounted_for(made):
    counts = made.counts
    windows = counts["train"] + counts["valid_windows"] + counts["test_windows"]
    dropped = counts["rows_rejected"] + counts["rows_only_in_histories"] + counts["dropped_rows_of_short_users"]
    assert counts["rows_read"] == windows + dropped


def test_popularity_is_of_the_training_time_only(made, whole):
    valid_begins = whole.valid["timestamp"].to_numpy().min()
    assert made.train["timestamp"].to_numpy().max() < valid_begins
    # at least each training target once, and never more than the rows that were read
    targets = made.train["target"].to_pylist()
    assert all(made.catalogue.popularity[made.catalogue.index[t]] >= targets.count(t) for t in set(targets[:50]))
    held = made.counts["valid_windows"] + made.counts["test_windows"]
    assert made.catalogue.popularity.sum() <= made.counts["rows_read"] - held


def test_content_hash_sees_values_and_not_layout():
    table = pa.table({"a": ["x", None, "yz"], "b": [["p"], [], ["q", "r"]], "c": [1, 2, 3]})
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1)])
    assert content_hash(table) == content_hash(pieces)
    large = table.set_column(0, "a", table["a"].cast(pa.large_string()))
    assert content_hash(table) == content_hash(large)
    rows = table.to_pylist()
    for column, value in (("a", ""), ("b", ["p"]), ("b", None), ("b", [None]), ("c", 5), ("c", None), ("c", 0)):
        changed = [dict(row) for row in rows]
        changed[1][column] = value
        assert content_hash(pa.Table.from_pylist(changed, table.schema)) != content_hash(table)
    for moved in ({"a": ["xy", None, "z"]}, {"b": [["p"], ["q"], ["r"]]}, {"b": [["pq"], [], ["", "r"]]}):
        assert content_hash(pa.table({name: table[name] for name in "abc"} | moved)) != content_hash(table)
    assert content_hash(table.replace_schema_metadata({"k": "v"})) != content_hash(table)


def test_synthetic_titles_are_as_hard_as_real_ones(made):
    titles = made.catalogue.titles
    assert len(titles) == len(set(titles)) == 600
    for mark in ('"', ",", "\n", "|", "東", "Д", "(19", " Returns", " 2"):
        assert any(mark in title for title in titles), mark
    assert len({genre for genres in made.catalogue.genres for genre in genres}) == 8
    top = np.sort(made.catalogue.popularity)[::-1]
    assert top[:60].sum() > 0.25 * top.sum()  # a tenth of the films: far more than a tenth of the views


def test_synthetic_truth_is_what_the_data_does(made, whole):
    rows = whole.test.to_pylist()
    index = made.catalogue.index
    expected, variance, hits = 0.0, 0.0, 0
    follows = 0
    for row in rows:
        p = made.truth.probabilities(row["history"], row["user"])
        assert abs(p.sum() - 1) < 1e-12
        assert p[[index[title] for title in row["history"]]].max() == 0  # nothing is watched twice in a window
        assert p[index[row["target"]]] > 0
        best = p.max()
        follows += best >= 0.5
        expected, variance, hits = (
            expected + best,
            variance + best * (1 - best),
            hits + (p[index[row["target"]]] == best),
        )
    # the share of rows where the most probable film came next is its mean probability, within 4 standard errors
    assert abs(hits - expected) < 4 * variance**0.5
    assert follows > 0.2 * len(rows)  # sequels: enough for a small model to learn from
    with pytest.raises(ValueError, match="wanted both from this synthetic data set"):
        made.truth.probabilities(["no such film"], "user-0000")


#: Facts of the shipped data: catalogue, train, all validation windows, all test windows, more counts.
FACTS = {
    "sprec/MovieLens": (
        10681,
        4096,
        512,
        1000,
        {"duplicate_titles": 1, "repaired_titles": 724, "repaired_rows_test": 162},
    ),
    "sprec/Goodreads": (
        4058,
        4096,
        512,
        1000,
        {"targets_outside_catalogue": 7, "history_titles_outside_catalogue": 57},
    ),
    "movielens-latest-small": (9123, 74635, 9330, 9329, {"rows_read": 100_004, "users": 671, "duplicate_titles": 2}),
    "movielens-100k": (1664, 72457, 9055, 9058, {"rows_read": 100_000, "users": 943, "duplicate_titles": 18}),
    "lastfm": (4606, 49824, 2939, 2681, {"users": 1220, "test_rows_also_in_train": 58}),
    "amazon-beauty": (12073, 32457, 3996, 4141, {"rows_read": 198_502, "users": 22363, "users_too_short": 18121}),
    "steam-hours": (5153, 29410, 3677, 3676, {"rows_read": 70_489, "users": 11350, "duplicate_titles": 2}),
}


@pytest.mark.parametrize("name", FACTS)
def test_real_data_loads(real_data, name):
    if real_data is None:
        return
    made = load(DataConfig(data=str(real_data / name), bad_rows="drop" if name == "lastfm" else "stop"))
    catalogue, train, valid, test, more = FACTS[name]
    found = (len(made.catalogue), len(made.train), made.counts["valid_windows"], made.counts["test_windows"])
    assert found == (catalogue, train, valid, test)
    assert {key: made.counts[key] for key in more} == more
    assert made.counts["rows_rejected"] == len(made.rejected) == 0
    assert (len(made.valid), len(made.test)) == (256, 1000)
    if name == "sprec/MovieLens":
        titles = {title for row in made.test.to_pylist() for title in (*row["history"], row["target"])}
        assert titles <= set(made.catalogue.titles)
        assert "WALL·E (2008)" in titles
        assert '"Great Performances" Cats (1998)' in titles
