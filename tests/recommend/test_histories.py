"""Users and their histories, from logs and from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.config import PlacementConfig
from rayrec.data.settings import DataConfig
from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.recommend import batch, histories, places


def rows(tables) -> list[dict]:
    return [row for table in tables for row in table.to_pylist()]


def test_logs_give_every_users_last_titles_oldest_first(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text(
        "user,item,timestamp\nb,1,5\na,2,9\na,1,3\na,3,4\nb,2,5\n"  # equal times keep the order of the file
    )
    (tmp_path / "items.csv").write_text("item,title\n1,One\n2,Two\n3,Three\n")
    found = rows(histories.from_logs(DataConfig(data=str(tmp_path)), 3))
    assert [(row["user"], row["history"], row["error"]) for row in found] == [
        ("a", ["One", "Three", "Two"], None),
        ("b", ["One", "Two"], None),
    ]


def test_logs_with_other_column_names_are_read(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("buyer,item,at\nb,1,5\na,2,9\n")
    (tmp_path / "items.csv").write_text("item,title\n1,One\n2,Two\n")
    place = places.Place("model", "model", None, {}, None)
    config, length = place.data(data=str(tmp_path), columns=("user=buyer", "timestamp=at"))
    assert [(row["user"], row["history"]) for row in rows(histories.from_logs(config, length))] == [
        ("a", ["Two"]),
        ("b", ["One"]),
    ]


def test_a_policy_of_a_run_has_the_users_of_its_run(tmp_path: Path) -> None:
    own = {"source": "csv", "data": "/logs", "columns": ["user=customer"], "history": 7, "bad_rows": "stop", "old": 1}
    of_run = places.Place("NAME/01/prefer", "model", tmp_path, {"data": own}, {"history": 7})
    assert of_run.data() == (
        DataConfig(source="csv", data="/logs", columns=("user=customer",), history=7, bad_rows="drop"),
        7,
    )
    assert of_run.data(data="/other") == (DataConfig(data="/other", bad_rows="drop"), 7)
    named = of_run.data(data="/other", columns=("user=buyer",))
    assert named == (DataConfig(data="/other", columns=("user=buyer",), bad_rows="drop"), 7)
    alone = places.Place("model", "model", None, {}, None)
    assert alone.data("synthetic") == (DataConfig(source="synthetic", bad_rows="drop"), 10)
    with pytest.raises(ValueError, match=r"outside of a run has no data\. Name users by --data DIR or --hist"):
        alone.data()


def test_ready_rows_have_no_users(real_data: Path | None) -> None:
    if real_data is not None:
        with pytest.raises(ValueError, match="ready rows and no interactions of users"):
            next(histories.from_logs(DataConfig(data=str(real_data / "lastfm")), 10))


def test_a_bad_row_of_a_file_has_an_error(tmp_path: Path) -> None:
    lines = [json.dumps({"user": "a", "history": ["One"]}), "", "{", json.dumps({"user": 7, "history": None})]
    lines += [json.dumps({"history": ["One"]}), json.dumps({"user": "c", "history": [1]}), "[]", "\udcff"]
    lines += [json.dumps({"user": True, "history": []}), "[" * 100_000]
    (tmp_path / "users.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    found = rows(histories.from_file(str(tmp_path / "users.jsonl")))
    good = [(row["user"], row["history"]) for row in found if row["error"] is None]
    assert good == [("a", ["One"]), ("7", [])]
    said = [row["error"] for row in found if row["error"] is not None]
    assert len(said) == 7 and all(row["history"] is None for row in found if row["error"])
    assert said[1] == "user is None, wanted a text or a number" and "history is [1], wanted a list" in said[2]

    lines = [b'\xef\xbb\xbf{"user": "a", "history": ["One"]}', b'{"user": "b", "history": ["\\ud800"]}', b'"a text"']
    lines += [b'{"user": "\\udfff", "history": [1]}', b'{"user": "Am\xe9lie", "history": ["One"]}']
    lines += [b'{"user": ' + b"9" * 5000 + b', "history": []}', '{"user": "Amélie", "history": ["One"]}'.encode()]
    (tmp_path / "bytes.jsonl").write_bytes(b"\r\n".join(lines))
    found = rows(histories.from_file(str(tmp_path / "bytes.jsonl")))
    assert [(row["user"], row["history"]) for row in found if row["error"] is None] == [
        ("a", ["One"]),
        ("Amélie", ["One"]),
    ]
    said = [row["error"] for row in found if row["error"] is not None]
    assert sum("no UTF-8, or half a surrogate pair" in one for one in said) == 3
    assert said[1] == "wanted an object" and said[4].startswith("no JSON: Exceeds the limit")

    table = pa.table({"user": ["a", None], "history": [["One"], ["Two"]], "more": [1, 2]})
    pq.write_table(table, tmp_path / "users.parquet")
    assert [row["error"] is None for row in rows(histories.from_file(str(tmp_path / "users.parquet")))] == [True, False]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file\. Name a Parquet or JSONL file"):
        histories.from_file("nowhere.jsonl")
    (tmp_path / "users.txt").write_text("a")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + b"\1" * 200 + b"\x10\0\0\0PAR1")
    for name in ("users.txt", "damaged.parquet"):
        with pytest.raises(ValueError, match=r"found neither Parquet nor a name that ends in \.jsonl"):
            histories.from_file(str(tmp_path / name))
    pq.write_table(pa.table({"user": ["a"]}), tmp_path / "half.parquet")
    with pytest.raises(ValueError, match=r"found columns \['user'\], wanted \['history'\]"):
        histories.from_file(str(tmp_path / "half.parquet"))


def test_dates_are_read_in_the_order_that_is_said(tmp_path: Path) -> None:
    place = places.Place("x", "x", None, {}, None)
    (tmp_path / "log.csv").write_text("user,title,timestamp\nann,One,04/05/2025\nann,Two,05/04/2025\n")
    with pytest.raises(ValueError, match="Add --date-order day or --date-order month"):
        rows(histories.from_logs(*place.data(data=str(tmp_path))))
    for order, wanted in (("day", ["Two", "One"]), ("month", ["One", "Two"])):
        (row,) = rows(histories.from_logs(*place.data(data=str(tmp_path), date_order=order)))
        assert row["history"] == wanted


def test_parts_have_equal_sizes_and_chosen_users_all_stand_there(tmp_path: Path) -> None:
    made = [{"user": str(i), "history": ["One"], "error": None} for i in range(1300)]
    tables = [pa.Table.from_pylist(made[i : i + 700], schema=histories.HISTORIES) for i in (0, 700)]
    assert [len(table) for table in batch._sized(tables)] == [512, 512, 276]
    assert [row["user"] for row in rows(batch._sized(tables))] == [row["user"] for row in made]
    (tmp_path / "users.txt").write_text("999\n3\nnobody\n")
    chosen = rows(batch._chosen(tables, str(tmp_path / "users.txt")))
    assert [(row["user"], row["history"]) for row in chosen] == [("3", ["One"]), ("999", ["One"]), ("nobody", [])]
    assert [row["user"] for row in rows(batch._chosen(tables, "999, nobody,3"))] == ["3", "999", "nobody"]
    with pytest.raises(ValueError, match="--users nowhere: no such file, and the data has no such user"):
        rows(batch._chosen(tables, "nowhere"))


def test_a_user_of_two_rows_and_users_by_any_list_are_chosen(tmp_path: Path) -> None:
    made = [{"user": str(i % 1000), "history": ["One"], "error": None} for i in range(1400)]
    tables = [pa.Table.from_pylist(made[i : i + 700], schema=histories.HISTORIES) for i in (0, 700)]
    assert [row["user"] for row in rows(batch._chosen(tables, "~no account,3"))] == ["3", "3", "~no account"]
    assert len(rows(batch._chosen(tables, ",".join(map(str, range(900)))))) == 1300
    (tmp_path / "users.txt").write_bytes(b"\xef\xbb\xbf999\r\n998\r\n")
    assert [row["user"] for row in rows(batch._chosen(tables, str(tmp_path / "users.txt")))] == ["998", "999"]
    (tmp_path / "users.txt").write_bytes(b"Am\xe9lie\n")
    with pytest.raises(ValueError, match=r"users\.txt: found no UTF-8 .* Convert the file to UTF-8"):
        rows(batch._chosen(tables, str(tmp_path / "users.txt")))


def test_a_command_that_is_refused_leaves_nothing_and_needs_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny(["One", "Two"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), tmp_path / "policy", 0)
    (tmp_path / "titles.csv").write_text("title\nOne\nTwo\n")
    (tmp_path / "users.jsonl").write_text('{"user": "a", "history": ["One"]}\n')
    (tmp_path / "empty.jsonl").touch()
    given: dict[str, Any] = {"policy": str(tmp_path / "policy"), "catalogue": str(tmp_path / "titles.csv")}
    given |= {"template": "compact", "out": str(tmp_path / "out.parquet"), "histories": str(tmp_path / "users.jsonl")}
    given["placement"] = PlacementConfig(device="gpu")  # of a machine of the cluster, not of this one
    with pytest.raises(ValueError, match="--users ghost: no such file"):
        batch.run(batch.RecommendConfig(**given, users="ghost"))
    with pytest.raises(ValueError, match=r"the histories or the file of --users are empty\. Name others"):
        batch.run(batch.RecommendConfig(**{**given, "histories": str(tmp_path / "empty.jsonl")}))
    assert not (tmp_path / "out.parquet.parts").exists()

    class Reached(Exception):
        pass

    def answer(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(batch, "_answer", answer)
    with pytest.raises(Reached):
        batch.run(batch.RecommendConfig(**given, users="a"))
