import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue

TITLES = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6)


def test_identical_titles_are_one_item_with_the_union_of_genres():
    catalogue = Catalogue.from_items(["A", "B", "A"], [["x", "y"], [], ["y", "z", ""]])
    assert catalogue.titles == ["A", "B"]
    assert catalogue.genres == [["x", "y", "z"], []]
    assert catalogue.index == {"A": 0, "B": 1}
    assert len(catalogue) == 2


def test_the_ten_genres_with_most_interactions_are_selected_ties_by_name():
    genres = [[f"g{n:02d}"] for n in range(12)]
    popularity = np.array([5, 5, 9, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    catalogue = Catalogue.from_items([str(n) for n in range(12)], genres).with_training(popularity, None)
    # 9, then the two 5s by name, then the eight 1s by name until ten are found; g11 was never seen
    assert catalogue.selected_genres == ["g02", "g00", "g01", "g03", "g04", "g05", "g06", "g07", "g08", "g09"]
    # two items of one genre add up: 2 + 3 > 4
    small = Catalogue.from_items(["A", "B", "C"], [["x"], ["y"], ["x"]]).with_training(np.array([2, 4, 3]), None)
    assert small.selected_genres == ["x", "y"]
    assert small.with_training(np.array([1, 1, 1]), ["q"]).selected_genres == ["q"]


@settings(max_examples=40)
@given(TITLES, st.lists(st.text(), max_size=3))
def test_any_unicode_survives_parquet(titles, genres):
    catalogue = Catalogue.from_items(titles, [genres] * len(titles))
    catalogue = catalogue.with_training(np.arange(len(catalogue)), genres)
    sink = pa.BufferOutputStream()
    pq.write_table(catalogue.to_table(), sink)
    back = Catalogue.from_table(pq.read_table(pa.BufferReader(sink.getvalue())))
    assert back.titles == catalogue.titles == list(dict.fromkeys(titles))
    assert back.genres == catalogue.genres
    assert back.selected_genres == genres
    assert back.popularity.dtype == np.int64
    assert back.popularity.tolist() == list(range(len(catalogue)))


def test_what_is_no_catalogue_is_refused():
    good = Catalogue.from_items(["A", "B"], [[], []]).to_table()
    assert good.schema.remove_metadata() == schema.CATALOGUE
    with pytest.raises(ValueError, match="empty: found no item"):
        Catalogue.from_items([], [])
    with pytest.raises(ValueError, match="empty title"):
        Catalogue.from_items([" \n"], [[]])
    with pytest.raises(ValueError, match="lacks `selected_genres`"):
        Catalogue.from_table(good.replace_schema_metadata(None))
    with pytest.raises(ValueError, match="numbered from 0"):
        Catalogue.from_table(good.take([1, 0]))
    with pytest.raises(ValueError, match="popularity"):
        Catalogue.from_table(good.drop_columns(["popularity"]))


def test_ids_of_the_data_are_kept_and_named_in_predictions():
    catalogue = Catalogue.from_items(["A", "B", "A"], [[], [], []], ["7", "x", "9"]).with_training(np.ones(2), [])
    assert catalogue.ids == [["7", "9"], ["x"]]
    table = catalogue.to_table()
    assert Catalogue.from_table(table).ids == catalogue.ids
    assert Catalogue.from_table(table.drop_columns("ids")).ids == [[], []]
    row = {"example_id": "e", "policy": "p", "decode": "beams", "target": "A", "texts": [], "logprobs": []}
    made = pa.Table.from_pylist([row | {"titles": ["B", "A"]}, row | {"titles": []}], schema=schema.PREDICTIONS)
    examples = pa.table({"user": ["u1", "u2"]})
    named = catalogue.identified(made, examples)
    assert named.schema == schema.IDENTIFIED
    assert named.select(["user", "items"]).to_pylist() == [
        {"user": "u1", "items": ["x", "7"]},
        {"user": "u2", "items": []},
    ]
    unnamed = Catalogue.from_items(["A", "B"], [[], []]).identified(made, examples)
    assert unnamed["items"].to_pylist() == [["", ""], []]
