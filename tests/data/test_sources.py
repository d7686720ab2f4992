import csv
import json
import shutil
import subprocess
import unicodedata
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayrec.data import load
from rayrec.data.settings import DataConfig
from rayrec.data.sources import detect
from rayrec.data.sources.sprec import quoted, repair, split_titles
from rayrec.data.sources.steam import stars

ITEMS = "item,title,genres\n1,A,x|y\n2,B,\n3,C,x\n4,D,y\n"


def log(*extra, header="user,item,rating,timestamp"):
    """Six interactions of one user, times 1 to 6, and more lines."""
    rows = [f"u,{1 + n % 4},{n % 5 + 0.5},{n + 1}" for n in range(6)]
    return "\n".join([header, *rows, *extra, ""])


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


def config(folder, **more):
    return DataConfig(**{"data": str(folder), "history": 2} | more)


def rejected(folder, **more):
    made = load(config(folder, bad_rows="drop", **more))
    return made, [tuple(row.values()) for row in made.rejected.to_pylist()]


def test_csv_by_hand(tmp_path):
    made = load(config(put(tmp_path, {"interactions.csv": log(), "items.csv": ITEMS})))
    assert made.source == "csv"
    rows = [(r["history"], r["target"]) for t in (made.train, made.valid, made.test) for r in t.to_pylist()]
    # times 3 4 5 6 give four windows; 0.8 * 4 = 3.2, but test needs one: borders 2 and 3
    assert rows == [(["A", "B"], "C"), (["B", "C"], "D"), (["C", "D"], "A"), (["D", "A"], "B")]
    assert [len(t) for t in (made.train, made.valid, made.test)] == [2, 1, 1]
    assert made.train["history_ratings"].to_pylist() == [[0.5, 1.5], [1.5, 2.5]]
    # items 1 to 4 are seen once before time 5; x: A and C, y: A and D
    assert made.catalogue.popularity.tolist() == [1, 1, 1, 1]
    assert made.catalogue.selected_genres == ["x", "y"]
    assert made.counts["rows_read"] == 6 == 4 + made.counts["rows_only_in_histories"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("u,9,1.0,7", "unknown item id"),
        ("u,1,five,7", "rating is not a number"),
        ("u,1,6,7", "rating is not in 0 to 5"),
        ("u,1,-1,7", "rating is not in 0 to 5"),
        ("u,1,inf,7", "rating is not in 0 to 5"),
        ("u,1,1,noon", "timestamp is not a number of seconds or a date"),
        ("u,1,1,nan", "timestamp is not a number of seconds or a date"),
        (",1,1,7", "no user id"),
        ("u,1,1", "3 columns instead of 4"),
        ("u,1,1,7,8", "5 columns instead of 4"),
    ],
)
def test_a_bad_row_stops_or_is_set_aside(tmp_path, line, reason):
    folder = put(tmp_path, {"interactions.csv": log(line, "u,2,1,8"), "items.csv": ITEMS})
    with pytest.raises(ValueError, match=r"found 1 bad rows.*interactions.csv row 8: .*--bad-rows drop") as error:
        load(config(folder))
    assert reason in str(error.value)
    made, rows = rejected(folder)
    assert [row[:3] for row in rows] == [("interactions.csv", 8, reason)]
    assert made.counts[f"rejected: {reason}"] == made.counts["rows_rejected"] == 1
    assert made.counts["rows_read"] == 8  # 7 good ones and the bad one


@pytest.mark.parametrize(
    ("line", "reason"), [("5, ,x", "empty title"), (",E,x", "no item id"), ("1,E,x", "item id appears before")]
)
def test_a_bad_item_is_set_aside(tmp_path, line, reason):
    folder = put(tmp_path, {"interactions.csv": log(), "items.csv": ITEMS + line + "\n"})
    with pytest.raises(ValueError, match=f"items.csv row 6: {reason}"):
        load(config(folder))
    made, rows = rejected(folder)
    assert [row[:3] for row in rows] == [("items.csv", 6, reason)]
    assert made.catalogue.titles == ["A", "B", "C", "D"]
    assert (made.counts["item_rows_read"], made.counts["rows_read"]) == (5, 6)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"interactions.csv": "", "items.csv": ITEMS}, "interactions.csv: the file is empty"),
        ({"interactions.csv": log(), "items.csv": "item,title\n"}, "found no item in items.csv"),
        ({"interactions.csv": "user,item,rating,timestamp\n", "items.csv": "item,title\n"}, "catalogue is empty"),
        ({"interactions.csv": "user,item,rating,timestamp\n", "items.csv": ITEMS}, "found no interaction"),
        ({"interactions.csv": "user,item,rating,timestamp", "items.csv": ITEMS}, "found no interaction"),
        ({"interactions.csv": log(), "items.csv": "sep=,\n" + ITEMS}, "Excel's sep=,. Remove it: `sed 1d <"),
        (
            {"interactions.csv": log(header="user,item,rating,moment"), "items.csv": ITEMS},
            r"\['timestamp'\] are missing",
        ),
        ({"interactions.csv": log(header="user,user,item,timestamp"), "items.csv": ITEMS}, "column name is repeated"),
        ({"interactions.csv": log(), "items.csv": ITEMS + '5,"E,x\n'}, "row 6 is broken.*Close the quote"),
        ({"interactions.csv": log(), "items.csv": ITEMS.encode() + b"5,\xff,x\n"}, "items.csv: row 6 is not UTF-8"),
        (
            {"interactions.csv": "user,item,timestamp\nu,1,1\nu,2,2\n", "items.csv": ITEMS},
            "No user has a past long .* wanted more than 2. Lower --history",
        ),
        (
            {"interactions.csv": "user,item,timestamp\nu,1.0,1\nu,2.0,2\n", "items.csv": ITEMS},
            "found 2 bad rows, .* row 2: unknown item id.* No id of the log is one of an item: write them alike",
        ),
        (
            {"interactions.csv": "user,item,timestamp\nu,1,noon\nu,2,noon\n", "items.csv": ITEMS},
            "found 2 bad rows, .* row 2: timestamp is not .* All rows are bad: correct the file",
        ),
        (
            {"items.csv": ITEMS},
            r"\['user', 'timestamp'\] are missing. .* or put the log into interactions.csv beside items.csv",
        ),
        ({"interactions.parquet": b"PAR1cut", "items.parquet": b""}, "items.parquet: is not readable Parquet"),
        ({"nothing.txt": ""}, r"format is not known. Found \['nothing.txt'\]. Looked for sprec: train.json"),
        (
            {"a.csv.gz": b"", "b.csv": b""},
            r"Found \['a.csv.gz', 'b.csv'\]. Name the one with user, title and timestamp; or call the log interactions",
        ),
        ({"a.parquet": b"", "b.csv": b""}, r"call the log .* both written in one format\. Looked"),
        (
            {"orders.csv": log()},
            r"\['title'\] are missing. Say .* or put titles into items.csv beside interactions.csv",
        ),
        ({"interactions.csv": "", "items.csv": "", "ratings.csv": "", "movies.csv": ""}, "'movielens', 'csv'"),
    ],
)
def test_broken_folders_say_what_is_wrong(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load(config(put(tmp_path, files)))


def test_detection(tmp_path):
    inner = put(tmp_path / "inner", {"interactions.csv": log(), "items.csv": ITEMS})
    assert detect("auto", inner)[0] == "csv"
    assert detect("auto", f"{inner}/items.csv") == ("csv", tmp_path / "inner")
    assert detect("auto", None) == detect("synthetic", None) == ("synthetic", None)
    for source, data, message in [
        ("auto", f"{inner}/none", "no such file or folder"),
        ("auto", str(tmp_path), r"Its folders \['inner'\] can be read"),
        ("lastfm", inner, "--source lastfm wants .*id2name.txt"),
        ("csv", None, "Add --data PATH"),
        ("synthetic", inner, "reads nothing"),
    ]:
        with pytest.raises(ValueError, match=message):
            detect(source, data)


@pytest.mark.parametrize(("kind", "form"), [("zip", "zip"), ("tar", "tar"), ("tar.gz", "gztar")])
def test_the_remedy_for_an_archive_works_as_typed(tmp_path, kind, form):
    inner = put(tmp_path / "data", {"interactions.csv": log(), "items.csv": ITEMS})
    path = tmp_path / f"my data.{kind}"
    shutil.make_archive(str(path).removesuffix(f".{kind}"), form, tmp_path, "data")
    with pytest.raises(ValueError, match=r"It is an archive. Unpack it: ") as error:
        load(config(path))
    subprocess.run(["sh", "-c", str(error.value).split("`")[1]], check=True, capture_output=True)
    with pytest.raises(ValueError, match=r"Its folders \['data'\] can be read"):
        load(config(f"{path}.files"))
    assert load(config(f"{path}.files/data")).content_hash == load(config(inner)).content_hash


def test_folders_with_a_log_are_named_and_unreadable_ones_refused(tmp_path, monkeypatch):
    put(tmp_path / "shop", {"orders.csv": "user,title,timestamp\nu,A,1\n"})
    put(tmp_path / "notes", {"x.txt": ""})
    with pytest.raises(ValueError, match=r"Its folders \['shop'\] can be read: name one"):
        load(config(tmp_path))

    def closed(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", closed)  # what Python 3.11 does below a folder that is closed to the user
    with pytest.raises(ValueError, match=f"--data {tmp_path}: this user may not read {tmp_path}"):
        load(config(tmp_path))


@pytest.mark.parametrize("name", ["history", "valid_rows", "test_rows"])
def test_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is 0, wanted at least 1"):
        load(DataConfig(**{name: 0}))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=8)
@example(["a\rb", "\x00", "\u2028 \ufeff", '", "', "x\r\ny\n"])
@given(st.lists(TEXT, min_size=3, max_size=5, unique_by=lambda title: unicodedata.normalize("NFC", title.strip())))
def test_titles_of_any_unicode_survive_every_format(tmp_path_factory, titles):
    folder = tmp_path_factory.mktemp("unicode")
    plays = [("u", str(n % len(titles)), n) for n in range(8)]
    with open(folder / "items.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("item", "title"), *((n, t) for n, t in enumerate(titles))])
    pl.DataFrame(plays, ["user", "item", "timestamp"], orient="row").write_csv(folder / "interactions.csv")
    found = load(config(folder, source="csv"))
    numbers = range(len(titles))
    pq.write_table(pa.table({"item": numbers, "title": titles}), folder / "items.parquet")
    pq.write_table(
        pa.table({"user": ["u"] * 8, "item": [n % len(titles) for n in range(8)], "timestamp": list(range(8))}),
        folder / "interactions.parquet",
    )
    again = load(config(folder, source="parquet"))
    amazon = folder / "amazon"
    lines = [json.dumps({"item": n, "title": t, "categories": ["All", "x"]}) for n, t in enumerate(titles)]
    put(amazon, {"items.jsonl": "\n".join(lines), "sequential_data.txt": "u " + " ".join(i for _, i, _ in plays)})
    third = load(config(amazon))
    for made in (found, again, third):
        assert made.catalogue.titles == titles
        assert made.train["history"].to_pylist()[0] == titles[:2]
    assert found.content_hash == again.content_hash != third.content_hash  # amazon's items have a genre


def test_movielens_by_hand(tmp_path):
    movies = 'movieId,title,genres\n1,"A, The (1990)",Drama|War\n2,B,(no genres listed)\n3,"A, The (1990)",Crime\n'
    ratings = "userId,movieId,rating,timestamp\n" + "".join(f"7,{1 + n % 3},0.5,{10 * n}\n" for n in range(5))
    made = load(config(put(tmp_path, {"movies.csv": movies, "ratings.csv": ratings})))
    assert made.catalogue.titles == ["A, The (1990)", "B"]
    assert made.catalogue.genres == [["Drama", "War", "Crime"], []]
    assert made.counts["duplicate_titles"] == 1


def test_recbole_by_hand(tmp_path):
    items = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    items += '1\t"A" B\t1990\tDrama War\n2\tB (1991)\t1991\t\n3\tC\tV\tWar\n'
    plays = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    # fractions of a second order the rows of one second: items 1 2 3 at 0.1 0.5 0.9, written backwards
    plays += "u\t3\t1\t0.9\nu\t2\t1\t0.5\nu\t1\t1\t0.1\nu\t1\t2\t5\nu\t2\t3\t6\nu\t3\t3\t7\n"
    made = load(config(put(tmp_path, {"x.item": items, "x.inter": plays})))
    assert made.catalogue.titles == ['"A" B (1990)', "B (1991)", "C"]
    assert made.catalogue.genres == [["Drama", "War"], [], ["War"]]
    assert made.train["history"].to_pylist()[0] == ['"A" B (1990)', "B (1991)"]
    assert made.train["timestamp"].to_pylist() == [0, 5]


def test_steam_ratings_by_hand(tmp_path):
    # four plays of one game, hours 1 2 2 9: ranks 1, 2.5, 2.5, 4; 5 (rank - 0.5) / 4 = 0.625, 2.5, 2.5, 4.375
    frame = pl.DataFrame({"item": ["g"] * 4, "hours": [1.0, 2.0, 2.0, 9.0]})
    assert frame.select(stars()).to_series().to_list() == [1, 3, 3, 5]
    # a single play: 5 * 0.5 / 1 = 2.5
    assert frame.head(1).select(stars()).item() == 3
    plays = "User_ID\tGame_ID\tHours\n" + "".join(f"u\t{1 + n % 2}\t{n}.5\n" for n in range(6)) + "u\t1\t-2\n"
    folder = put(tmp_path, {"item_info.dat": 'Game_ID\tGame Name\n1\t"Q\n2\tB \n', "game_play.dat": plays})
    made, rows = rejected(folder)
    assert made.catalogue.titles == ['"Q', "B "]
    assert [row[:3] for row in rows] == [("game_play.dat", 8, "hours are not a number from 0")]
    assert made.train["timestamp"].to_pylist() == [4, 5]  # rows of the file; the header is row 1


def test_amazon_by_hand(tmp_path):
    items = "".join(json.dumps({"item": n, "title": f"T{n}", "categories": ["All", "x"]}) + "\n" for n in range(3))
    folder = put(tmp_path, {"items.jsonl": items + "{cut\n", "sequential_data.txt": "u 0 1 2 0 1 9\nv\n"})
    made, rows = rejected(folder)
    assert [row[:2] for row in rows] == [("items.jsonl", 4), ("sequential_data.txt", 2), ("sequential_data.txt", 1)]
    assert [row[2].split(":")[0] for row in rows] == ["not JSON", "no items", "unknown item id"]
    assert made.catalogue.genres == [["x"]] * 3
    assert made.train["timestamp"].to_pylist() == [2]  # the position, from 0
    assert made.counts["rows_read"] == 7  # six purchases and the line without one


def lastfm(rows):
    return "".join(json.dumps({"history": history, "target": target}) + "\n" for history, target in rows)


def test_lastfm_by_hand(tmp_path):
    files = {f"{split}.jsonl": lastfm([([0], 1), ([0, 1], 2), ([0], 2)]) for split in ("train", "valid", "test")}
    files["valid.jsonl"] += lastfm([([1], 0)])
    files["test.jsonl"] += lastfm([([2], 0)])
    files["train.jsonl"] += lastfm([([0], 9), ([], 1)]) + "[1]\n" + '{"history": [0], "tar'
    folder = put(tmp_path, {"id2name.txt": "0::A::B\n1::C\n2::D"} | files)
    made, rows = rejected(folder)
    assert made.catalogue.titles == ["A::B", "C", "D"]
    assert made.test["history"].to_pylist() == [["D"]] and made.counts["test_rows_also_in_train"] == 3
    assert made.train["history"].to_pylist() == [["A::B"], ["A::B", "C"], ["A::B"]]
    assert made.train["user"].to_pylist() == ["train-0000", "train-0000", "train-0001"]
    assert {row[1]: row[2].split(":")[0] for row in rows} == {
        4: "unknown item id",
        5: "wanted a history of at least one item, and a target",
        6: "not a JSON object of UTF-8 text",
        7: "not JSON",
    }
    with pytest.raises(ValueError, match="found 4 bad rows"):
        load(config(folder))


def sprec_row(history, target):
    titles = ", ".join(f'"{title}"' for title in history)
    return {"instruction": "i", "input": f"Watched: {titles}, go on", "output": f'"{target}"\n'}


def test_sprec_by_hand(tmp_path):
    names = ['The "Q"', "Café", 'Say "Yes", "No"', "A\nB, C", "Café"]
    broken = "Café".encode().decode("cp1252")
    rows = [sprec_row(['The "Q"', broken, "A\nB, C"], broken), sprec_row(['Say "Yes", "No"', "Café"], "Elsewhere")]
    files = {f"{split}.json": json.dumps(rows) for split in ("train", "valid", "test")}
    files["test.json"] = json.dumps(
        [*rows, sprec_row(["Café", ""], "Café"), {"input": "x"}, sprec_row(["Café"], "Café")]
    )
    files["valid.json"] = json.dumps([*rows, sprec_row(["Café"], "A\nB, C")])
    files |= {"id2name.json": json.dumps(dict(enumerate(names))), "name2genre.json": json.dumps({"Café": ["x"]})}
    files["genre_dict.json"] = json.dumps({"z": 0, "x": 0})
    made, bad = rejected(put(tmp_path, files), history=10)
    assert made.train["history"].to_pylist() == [['The "Q"', "Café", "A\nB, C"], ['Say "Yes", "No"', "Café"]]
    assert made.train["target"].to_pylist() == ["Café", "Elsewhere"]
    assert made.catalogue.titles == names[:4]
    assert made.catalogue.selected_genres == ["z", "x"]
    assert [row[:2] for row in bad] == [("test.json", 3), ("test.json", 4)]
    # two titles of the first row of each of three files; one target outside in each, and left out but in training
    assert made.counts["repaired_titles"] == 6
    assert made.counts["repaired_rows_test"] == 1
    assert made.counts["targets_outside_catalogue"] == 1
    assert made.counts["test_rows_also_in_train"] == 2
    put(tmp_path, {"train.json": files["train.json"][:-9]})
    with pytest.raises(ValueError, match=r"train.json: row 1 is not JSON.*cut off"):
        load(config(tmp_path))
    put(tmp_path, {"train.json": '[{"input": "\\ud800"}]'})
    with pytest.raises(ValueError, match="half a surrogate pair"):
        load(config(tmp_path))


@given(TEXT, st.sampled_from(["latin-1", "cp1252"]))
def test_repair_undoes_a_wrong_decoding(title, encoding):
    try:
        broken = title.encode().decode(encoding)
    except UnicodeDecodeError:
        broken = title.encode().decode("latin-1")
    assert repair(broken) == title


@given(st.lists(TEXT.filter(lambda t: '", "' not in t), min_size=1, max_size=5))
def test_quoted_titles_are_found_again(titles):
    text = "before " + ", ".join(f'"{title}"' for title in titles) + " after"
    joined = '", "'.join(titles)
    # a title that begins or ends in parts of the separator can only be told apart with the catalogue's help
    if joined.count('", "') == len(titles) - 1:
        assert split_titles(quoted(text), set(titles)) == titles
    assert split_titles(joined, {joined}) == [joined]
