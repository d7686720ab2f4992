"""Files as people have them: line ends, packing, encodings and genres."""

import bz2
import csv
import gzip
import io
import json
import re
import subprocess
from dataclasses import replace

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data import load
from rayrec.data.settings import DataConfig
from rayrec.data.sources import columns, genres

ITEMS = [("item", "title", "genres"), (1, "Amélie", "x|y"), (2, 'B "b", b', ""), (3, "C\n2", "x"), (4, "D", "y")]
PLAYS = [("user", "item", "rating", "timestamp"), *(("u", 1 + n % 4, n % 5 + 0.5, n + 1) for n in range(8))]


def written(rows, eol="\n", separator=","):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=eol, quoting=csv.QUOTE_ALL).writerows(rows)
    return text.getvalue().encode()


def put(folder, items=None, plays=None, names=("items.csv", "interactions.csv")):
    folder.mkdir(exist_ok=True)
    for name, data in zip(names, (items or written(ITEMS), plays or written(PLAYS)), strict=True):
        (folder / name).write_bytes(data)
    return DataConfig(data=str(folder), history=2)


@pytest.fixture
def wanted(tmp_path):
    return load(put(tmp_path / "plain")).content_hash


def blank(data, line=b""):
    """A blank line after every second row, and two at the end."""
    lines = data.split(b"\n")
    lines[3:3] = [line]
    return b"\n".join([*lines, line, b""])


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: written(rows, "\r\n"),
        lambda rows: written(rows, "\r"),
        lambda rows: written(rows, "\r\r\n"),
        lambda rows: blank(written(rows)) if rows is PLAYS else written(rows) + b"\n\n",
        lambda rows: blank(written(rows), b"  ") if rows is PLAYS else written(rows) + b",,\n",
        lambda rows: b"\xef\xbb\xbf" + written(rows),
        lambda rows: written(rows).decode().encode("utf-16"),
        lambda rows: written(rows, "\r\n").decode().encode("utf-16"),
        lambda rows: written(rows, separator=";"),
        lambda rows: written(rows, separator="\t"),
        lambda rows: gzip.compress(written(rows)),
        lambda rows: bz2.compress(written(rows)),
        lambda rows: pa.compress(written(rows), "zstd", asbytes=True),
        lambda rows: gzip.compress(written(rows, "\r")),
    ],
    ids=[
        *("crlf", "cr", "crcrlf", "blank", "spaces", "mark", "utf16", "utf16-crlf", "semicolon", "tab"),
        *("gzip", "bz2", "zstd", "gzip-cr"),
    ],
)
def test_tables_are_read_whatever_their_bytes(tmp_path, wanted, change):
    found = load(put(tmp_path / "other", change(ITEMS), change(PLAYS)))
    assert found.content_hash == wanted
    assert found.counts["rows_rejected"] == 0


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2"])
def test_packed_files_have_their_names(tmp_path, wanted, ending):
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "zst": lambda data: pa.compress(data, "zstd", asbytes=True)}[
        ending
    ]
    names = (f"items.csv.{ending}", f"interactions.csv.{ending}")
    config = put(tmp_path / "packed", pack(written(ITEMS)), pack(written(PLAYS)), names)
    assert load(config).content_hash == wanted
    (tmp_path / "packed" / "items.csv").write_bytes(written(ITEMS))  # unpacked beside its packed copy
    assert load(config).content_hash == wanted


def test_what_is_cut_off_or_an_archive_is_refused(tmp_path):
    config = put(tmp_path / "cut", gzip.compress(written(ITEMS))[:-9])
    with pytest.raises(ValueError, match=r"items.csv: cannot be read: .*Is the file cut off"):
        load(config)
    with pytest.raises(ValueError, match=r"items.csv: is a zip archive. Unpack it: `python3 -m zipfile -e"):
        load(put(tmp_path / "zip", b"PK\x03\x04 and so on"))
    with pytest.raises(ValueError, match=r"items.csv: begins as UTF-16, but .*Is the file cut off"):
        load(put(tmp_path / "wide", written(ITEMS).decode().encode("utf-16")[:-1]))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_remedy_for_other_encodings_works_as_typed(tmp_path, wanted, encoding, packed):
    rows = [*ITEMS[:4], (4, "D’" if encoding == "cp1252" else "D", "y")]
    data = written(rows).decode().encode(encoding)
    config = put(tmp_path / "with space", gzip.compress(data) if packed else data)
    with pytest.raises(ValueError, match=r"items.csv: row 2 is not UTF-8") as error:
        load(config)
    subprocess.run(["sh", "-c", str(error.value).split("`")[1]], check=True)
    found = load(config)
    assert found.catalogue.titles[3] == rows[4][1]
    assert (found.content_hash == wanted) == (encoding == "latin-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"\n" + data, "the first row is blank"),
        (lambda data: b"sep=,\n" + data, "the first row is Excel's sep=,"),
        (lambda data: data.replace(b'","', b'", "'), "found spaces before quotes"),
        (lambda data: data.replace(b'","', b'", "').replace(b'"title", "genres"', b"title, genres"), "found spaces"),
        (lambda data: data.replace(b'","', b'"; "'), "found spaces before quotes"),
        (lambda data: data.replace(b'""', b"~").replace(b'"', b"'").replace(b"~", b'"'), "found single quotes"),
        (lambda data: re.sub(rb'""(?=[b,])', rb"\"", data), r"row 3 is broken.*or write quotes in it twice"),
    ],
    ids=["blank", "excel", "spaces", "spaces-plain-header", "spaces-semicolons", "single", "backslashes"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_remedy_for_other_csv_works_as_typed(tmp_path, wanted, change, message, packed):
    data = change(written(ITEMS).replace(b',""', b',"z"')).replace(b'"z"', b'""').replace(b"'z'", b"''")
    config = put(tmp_path / "with space", gzip.compress(data) if packed else data)
    with pytest.raises(ValueError, match=message) as error:
        load(config)
    assert "\n" not in str(error.value)
    subprocess.run(["sh", "-c", str(error.value).split("`")[1]], check=True)
    assert load(config).content_hash == wanted


@pytest.mark.parametrize(
    ("cells", "lists", "told"),
    [
        (["a|b", "a", "", None], [["a", "b"], ["a"], [], []], ""),
        (["a | b", " a "], [["a", "b"], ["a"]], ""),
        (["a, b", "c & d,", "e"], [["a", "b"], ["c & d"], ["e"]], "separated by ','"),
        (["a; b, c", "d"], [["a", "b, c"], ["d"]], "separated by ';'"),
        (["a|b, c", "d, e"], [["a", "b, c"], ["d, e"]], ""),
        (["['a', 'b']", "[]", "['c, d']"], [["a", "b"], [], ["c, d"]], "written as lists"),
        (['["a", null, "b"]', "null", '["c"]'], [["a", "b"], [], ["c"]], "written as lists"),
        (["a|b", "nan", "NULL", "None", "c"], [["a", "b"], [], [], [], ["c"]], ""),
        (
            ["{a,b}", '{"c d","e, \\"f\\""}', "{}", "{g}"],
            [["a", "b"], ["c d", 'e, "f"'], [], ["g"]],
            "written as lists",
        ),
        (["{'d', 'c', 'b', 'a', 'e'}"], [["d", "c", "b", "a", "e"]], "written as lists"),
        (["{a\nb}"], [["{a\nb}"]], ""),
        ([["a", None], ["b"]], [["a"], ["b"]], ""),
        (["['a' 'b']", "['c'\n 'd']"], [["a", "b"], ["c", "d"]], "written as lists"),
        (["[{'id': 18, 'name': 'a'}, {'id': 1, 'name': 'b'}]"], [["a", "b"]], "written as lists"),
        (['[{"id": 18, "name": "a"}]', "{'id': 1, 'name': 'b'}"], [["a"], ["b"]], "written as lists"),
        (["'a', 'b & c'", "d"], [["a", "b & c"], ["d"]], "written as lists"),
        (["(no genres listed)", "a|b"], [[], ["a", "b"]], ""),
        (["[brackets] a|b"], [["[brackets] a", "b"]], ""),
        (["[" * 100_000], [["[" * 100_000]], ""),
        ([["a ", "b"], None, []], [["a", "b"], [], []], ""),
        ([[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], [], None], [["a", "b"], [], []], ""),
        ([[["All", "a"], ["b"]]], [["All", "a", "b"]], ""),
    ],
)
def test_genres_in_every_form(cells, lists, told):
    found, form = genres.lists(pl.Series(cells))
    assert (found.to_list(), form) == (lists, told)


def test_genres_between_spaces():
    assert genres.lists(pl.Series(["Drama War", "Sci-Fi"]), spaces=True)[0].to_list() == [["Drama", "War"], ["Sci-Fi"]]
    assert genres.lists(pl.Series(["Drama, War film"]), spaces=True)[0].to_list() == [["Drama", "War film"]]
    assert genres.lists(pl.Series(["'Beauty', 'Hair Care'"]), spaces=True)[0].to_list() == [["Beauty", "Hair Care"]]


def test_one_genre_form_is_as_good_as_another(tmp_path, wanted):
    lists = [[name for name in row[2].split("|") if name] for row in ITEMS[1:]]
    structs = [[{"id": len(name), "name": name} for name in names] for names in lists]
    for number, form in enumerate((lists, structs, [str(names) for names in lists], [", ".join(n) for n in lists])):
        folder = tmp_path / str(number)
        folder.mkdir()
        columns = {"item": [row[0] for row in ITEMS[1:]], "title": [row[1] for row in ITEMS[1:]], "genres": form}
        pq.write_table(pa.table(columns), folder / "items.parquet")
        plays = dict(zip(PLAYS[0], map(list, zip(*PLAYS[1:], strict=True)), strict=True))
        pq.write_table(pa.table(plays), folder / "interactions.parquet")
        made = load(DataConfig(data=str(folder), history=2))
        assert made.content_hash == wanted
        assert ("genres" in made.told) == (number > 1)


def renamed(rows, names):
    return [tuple(names), *rows[1:]]


def test_columns_with_other_names(tmp_path, wanted):
    plays = renamed(PLAYS, ("reviewerID", "Movie ID", "Stars", "unix_time"))
    obvious = load(put(tmp_path / "a", written(renamed(ITEMS, ("movieId", "name", "Genre"))), written(plays)))
    assert obvious.content_hash == wanted
    assert "user=reviewerID" in obvious.told["columns"] and "timestamp=unix_time" in obvious.told["columns"]
    config = put(
        tmp_path / "b", written(renamed(ITEMS, ("k", "t", "g"))), written(renamed(PLAYS, ("w", "k", "r", "at")))
    )
    with pytest.raises(
        ValueError, match=r"\['item', 'title'\] are missing; .*\['user', 'item', 'timestamp'\] are missing"
    ):
        load(config)
    some = load(replace(config, columns=("user=w", "item=k", "title=t", "timestamp=at")))
    assert some.told["columns"] == "item=k timestamp=at title=t user=w; not read: g, r"
    columns = ("user=w", "item=k", "title=t", "genres=g", "rating=r", "timestamp=at")
    assert load(replace(config, columns=columns)).content_hash == wanted
    titles = {row[0]: row[1] for row in ITEMS}
    named = [(user, titles[item], *rest) for user, item, *rest in PLAYS[1:]]
    twice = put(tmp_path / "c", written([row[1:] for row in ITEMS]), written([("user", "item", *PLAYS[0][2:]), *named]))
    assert load(replace(twice, columns=("item=title",))).content_hash == wanted
    for bad, message in (
        (("who=w",), "wanted NAME=COLUMN"),
        ((*columns[:5], "timestamp=when"), "no file has a column 'when'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(replace(config, columns=bad))
    with pytest.raises(ValueError, match="--columns user=a user=b: a name is there twice"):
        load(replace(config, columns=("user=a", "user=b")))
    with pytest.raises(ValueError, match="--columns is read for own tables"):
        load(DataConfig(columns=columns))


def test_parquet_in_parts_and_hive_partitions(tmp_path, wanted):
    columns = {name: [row[i] for row in ITEMS[1:]] for i, name in enumerate(ITEMS[0])}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    plays = pa.table({name: [row[i] for row in PLAYS[1:]] for i, name in enumerate(PLAYS[0])})
    above = tmp_path / "user=me"
    above.mkdir()
    pq.write_table(pa.table(columns), above / "items.parquet")
    pq.write_table(plays, above / "interactions.parquet")
    assert load(DataConfig(data=str(above), history=2)).content_hash == wanted
    parts = tmp_path / "interactions.parquet"
    parts.mkdir()
    (parts / "_SUCCESS").write_bytes(b"")
    for number in range(2):
        pq.write_table(plays.slice(4 * number, 4), parts / f"part-{number}.parquet")
    assert load(DataConfig(data=str(tmp_path), history=2)).content_hash == wanted
    parts.rename(tmp_path / "other")
    for number in range(2):
        folder = tmp_path / "interactions" / f"year={2000 + number}"
        folder.mkdir(parents=True)
        pq.write_table(plays.slice(4 * number, 4), folder / "x.parquet")
    assert load(DataConfig(data=str(tmp_path), history=2)).content_hash == wanted


def test_parts_have_the_columns_and_types_of_all(tmp_path, wanted):
    films = {row[0]: row[1:] for row in ITEMS[1:]}
    rows = [(user, item, *films[item], rating, time) for user, item, rating, time in PLAYS[1:]]
    names = ("user", "item", "title", "genres", "rating", "timestamp")
    log = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})

    def write(folder, *parts):
        folder.mkdir()
        for number, part in enumerate(parts):
            pq.write_table(part, folder / f"part-{number}.parquet")
        return load(DataConfig(data=str(folder), history=2, bad_rows="drop"))

    def of(some, name, kind):
        return some.set_column(some.column_names.index(name), name, some[name].cast(kind))

    one, two = log.slice(0, 4), log.slice(4)
    assert write(tmp_path / "words", of(one, "user", pa.string()).select(names[::-1]), two).content_hash == wanted
    assert write(tmp_path / "categories", one, of(two, "user", pa.dictionary(pa.int32(), "str"))).content_hash == wanted
    moments = of(two, "timestamp", pa.timestamp("s"))
    assert write(tmp_path / "moments", one, moments).content_hash == wanted
    assert write(tmp_path / "ids", of(one, "item", pa.float64()), two).content_hash == wanted
    whole = of(log, "rating", pa.float32()).set_column(4, "rating", pa.array([5, 4, 3, 2, 1.5, 2.5, 3.5, 4.5]))
    found = write(tmp_path / "whole", of(whole.slice(0, 4), "rating", pa.int64()), whole.slice(4))
    assert found.content_hash == write(tmp_path / "decimals", whole).content_hash
    for number, first in enumerate((one.drop_columns("rating"), one.set_column(4, "rating", pa.nulls(4)))):
        made = write(tmp_path / f"unrated {number}", first, two)
        assert made.counts["rows_unrated"] == 4 and made.test["target_rating"].to_pylist() == [2.5]
    made = write(tmp_path / "nobody", one.drop_columns("user"), log)
    assert made.content_hash == wanted and made.counts["rejected: no user id"] == 4


def test_what_folders_of_partitions_name_is_text(tmp_path):
    for user in ("7", "007"):
        folder = tmp_path / f"user={user}" / "year=2024"
        folder.mkdir(parents=True)
        plays = {"title": [*"ABCDE"], "timestamp": [1, 2, 3, 4, 5], "year": [2024] * 5}  # year is in the rows too
        pq.write_table(pa.table(plays), folder / "x.parquet")
    made = load(DataConfig(data=str(tmp_path), history=2))
    assert made.counts["users"] == 2 and {*made.train["user"].to_pylist()} == {"7", "007"}


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("title", pa.array([["A"]] * 4), "text or numbers"),
        ("user", pa.array([{"id": 1}] * 4), "text or numbers"),
        ("rating", pa.array([[5]] * 4), "text or numbers"),
        ("timestamp", pa.array([1, 2, 3, 4], pa.time32("s")), "moments"),
        ("timestamp", pa.array([1, 2, 3, 4], pa.duration("s")), "moments"),
    ],
)
def test_columns_of_other_types_are_refused(tmp_path, name, values, wanted):
    log = {"user": pa.array([1] * 4), "title": pa.array([*"ABCD"]), "timestamp": pa.array([1, 2, 3, 4])}
    pq.write_table(pa.table(log | {name: values}), tmp_path / "log.parquet")
    with pytest.raises(
        ValueError, match=rf"column '{name}' has the type [^\n]*, wanted {wanted}. .* --columns {name}="
    ):
        load(DataConfig(data=str(tmp_path)))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_json_lines_are_tables_too(tmp_path, wanted, packed):
    def lines(names, rows):
        text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        return gzip.compress(text.encode()) if packed else text.encode()

    (tmp_path / "two").mkdir()
    (tmp_path / "two" / f"items.jsonl{packed}").write_bytes(lines(ITEMS[0], ITEMS[1:]))
    (tmp_path / "two" / f"interactions.jsonl{packed}").write_bytes(lines(("userId", *PLAYS[0][1:]), PLAYS[1:]))
    made = load(DataConfig(data=str(tmp_path / "two"), history=2))
    assert made.source == "jsonl" and made.content_hash == wanted
    films = {row[0]: row[1:] for row in ITEMS[1:]}
    rows = [(user, item, *films[item], rating, time) for user, item, rating, time in PLAYS[1:]]
    (tmp_path / "one").mkdir()
    log = tmp_path / "one" / f"events.ndjson{packed}"
    log.write_bytes(lines(("who", "asin", "name", "tags", "stars", "ts"), rows))
    for path in (log, log.parent):
        with pytest.raises(ValueError, match=r"events.ndjson.*: found columns \['who', .* \['user'\] are missing"):
            load(DataConfig(data=str(path), history=2))
        assert load(DataConfig(data=str(path), history=2, columns=("user=who",))).content_hash == wanted
    good = gzip.decompress(log.read_bytes()) if packed else log.read_bytes()
    bad = [b'{"who": ' + b"[" * 100_000, b'{"who": ' + b"1" * 5000 + b"}", b"{'who': {1, 2}, 'name': '\\u00e9'}"]
    text = good + b"\n".join(bad)
    log.write_bytes(gzip.compress(text) if packed else text)
    made = load(DataConfig(data=str(log), history=2, columns=("user=who",), bad_rows="drop"))
    assert made.content_hash == wanted
    reasons = [row["reason"][:15] for row in made.rejected.to_pylist()]
    assert reasons == ["not JSON: maxim", "not JSON: Excee", "without asin, t"]
    nested = good + json.dumps({"who": "u", "asin": {"id": 1}, "name": ["A"], "ts": 9}).encode()
    log.write_bytes(gzip.compress(nested) if packed else nested)
    made = load(DataConfig(data=str(log), history=2, columns=("user=who",), bad_rows="drop"))
    assert made.content_hash == wanted
    assert made.rejected["reason"].to_pylist() == ["a list or an object as asin, name"]
    objects = json.dumps([json.loads(line) for line in good.splitlines()], indent=1).encode()
    log.write_bytes(gzip.compress(objects) if packed else objects)
    with pytest.raises(ValueError, match=r"found no line that is a JSON object.*If the file is one list") as error:
        load(DataConfig(data=str(log)))
    subprocess.run(["sh", "-c", str(error.value).split("`")[1]], check=True)
    assert load(DataConfig(data=str(log), history=2, columns=("user=who",))).content_hash == wanted


def test_a_log_with_titles_is_one_table(tmp_path, wanted):
    films = {row[0]: row[1:] for row in ITEMS[1:]}
    rows = [(user, item, *films[item], rating, time) for user, item, rating, time in PLAYS[1:]]
    names = ("customer", "asin", "product name", "categories", "stars", "when")
    put(tmp_path / "csv")  # files of a format, beside which one of none is read
    path = tmp_path / "csv" / "my.csv"
    path.write_bytes(written([names, *rows]))
    made = load(DataConfig(data=str(path), history=2))
    told = "genres=categories item=asin rating=stars timestamp=when title=product name user=customer"
    assert made.source == "csv" and made.told["columns"] == told
    assert made.content_hash == wanted and made.catalogue.ids == [["1"], ["2"], ["3"], ["4"]]
    assert load(DataConfig(data=str(tmp_path / "csv"), history=2)).told == {"ratings": made.told["ratings"]}
    parts = tmp_path / "log.parquet"
    for day in range(2):
        (parts / f"day={day}").mkdir(parents=True)
        columns = zip(*rows[4 * day : 4 * day + 4], strict=True)
        table = pa.table(dict(zip(names, map(list, columns), strict=True)))
        pq.write_table(table, parts / f"day={day}" / "x.parquet")
    for data in (parts, tmp_path / "csv" / "my.parquet"):
        made = load(DataConfig(data=str(data), history=2))
        assert made.source == "parquet" and made.content_hash == wanted
        pq.write_table(pq.read_table(parts), tmp_path / "csv" / "my.parquet")


def test_a_log_of_titles_alone(tmp_path, wanted):
    titles = {row[0]: row[1] for row in ITEMS[1:]}
    rows = [("who", "what", "at"), *((user, titles[item], time) for user, item, _, time in PLAYS[1:])]
    (tmp_path / "views.tsv").write_bytes(written(rows, separator="\t"))
    config = DataConfig(data=str(tmp_path), history=2, columns=("user=who", "title=what", "timestamp=at"))
    made, both = load(config), load(DataConfig(data=str(tmp_path / "plain"), history=2))
    assert made.test["target"].equals(both.test["target"]) and made.train["history"].equals(both.train["history"])
    assert made.catalogue.titles == both.catalogue.titles
    assert made.catalogue.ids == [[title] for title in made.catalogue.titles]
    assert made.told["items"].startswith("each title is one")


def test_items_of_one_table_have_one_title(tmp_path):
    rows = [(n % 2, n % 3, ["A", "B", "C"][n % 3], n + 1) for n in range(12)]
    rows[6] = (0, 0, " A", 7)  # the same title
    rows[7] = (1, 1, "B, renamed", 8)
    rows[8] = (0, 2, "", 9)  # C as elsewhere
    rows += [(1, 7, " ", 14), (1, "", "D", 15)]
    (tmp_path / "log.csv").write_bytes(written([("user", "item", "title", "timestamp"), *rows]))
    made = load(DataConfig(data=str(tmp_path), history=2, bad_rows="drop"))
    assert made.catalogue.titles == ["A", "B", "C"] and made.counts["items_of_several_titles"] == 1
    assert made.told["titles"] == "1 item has several titles: the first is taken"
    assert [(row["row"], row["reason"]) for row in made.rejected.to_pylist()] == [
        (14, "no item, or no title"),
        (15, "no item, or no title"),
    ]
    assert made.counts["rows_read"] == 14 and made.counts["item_rows_read"] == 3


def test_what_spreadsheets_and_pandas_add_changes_nothing(tmp_path, wanted):
    index = [[("", *rows[0]), *((n, *row) for n, row in enumerate(rows[1:]))] for rows in (ITEMS, PLAYS)]
    assert load(put(tmp_path / "index", *map(written, index))).content_hash == wanted
    items = [ITEMS[0], *((f" {item} ", title, f" {names} ") for item, title, names in ITEMS[1:])]
    plays = [PLAYS[0], *(tuple(f" {cell} " for cell in row) for row in PLAYS[1:])]
    made = load(put(tmp_path / "spaces", written(items), written(plays)))
    assert made.catalogue.titles == [row[1] for row in ITEMS[1:]] and made.catalogue.ids == [["1"], ["2"], ["3"], ["4"]]
    assert made.content_hash == wanted
    semicolons = [(*ITEMS[0][:2], "genres", "a;b;c;d;e"), *((*row, "") for row in ITEMS[1:])]
    assert load(put(tmp_path / "semicolons", written(semicolons))).content_hash == wanted
    notes = [(*ITEMS[0], "a note\nof ours", "more"), *((*row, "x" * 140_000, "") for row in ITEMS[1:])]
    assert load(put(tmp_path / "notes", written(notes))).content_hash == wanted
    own = [(*PLAYS[0], "row"), *((*row, 7) for row in PLAYS[1:])]
    assert load(put(tmp_path / "row", None, written(own))).content_hash == wanted


def test_ids_keep_their_zeros_and_lose_the_point_of_pandas(tmp_path, wanted):
    items = [("item", "title"), ("1", "A"), ("01", "B"), ("001", "C")]
    plays = [("user", "item", "timestamp"), *((f"00{n % 2}", "0" * (n % 3) + "1", n + 1) for n in range(12))]
    made = load(put(tmp_path / "zeros", written(items), written(plays)))
    assert made.catalogue.ids == [["1"], ["01"], ["001"]] and set(made.train["user"].to_pylist()) == {"000", "001"}
    columns = {name: [row[i] for row in ITEMS[1:]] for i, name in enumerate(ITEMS[0])}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    plays = pa.table({name: [row[i] for row in PLAYS[1:]] for i, name in enumerate(PLAYS[0])})
    pq.write_table(plays.set_column(1, "item", plays["item"].cast(pa.float64())), tmp_path / "interactions.parquet")
    assert load(DataConfig(data=str(tmp_path), history=2)).content_hash == wanted


def test_titles_that_differ_in_space_around_them_are_one_item(tmp_path):
    made = load(put(tmp_path, written([*ITEMS, (5, "D ", "z")])))
    assert made.catalogue.titles == [row[1] for row in ITEMS[1:]]
    assert made.catalogue.ids[3] == ["4", "5"] and made.catalogue.genres[3] == ["y", "z"]
    assert made.counts["duplicate_titles"] == 1


def test_a_file_of_many_blocks_is_one_file(tmp_path, monkeypatch):
    plays = [(f"u{n % 7}", 1 + n % 4, n % 5 + 0.5, n + 1) for n in range(900)]
    rows = [PLAYS[0], *plays[:300], ("too", "few"), *plays[300:600], ("u", 9, 1, 1), ("",) * 4, *plays[600:]]
    config = replace(put(tmp_path, None, written(rows)), bad_rows="drop")
    whole = load(config)
    assert [(row["row"], row["reason"]) for row in whole.rejected.to_pylist()] == [
        (302, "2 columns instead of 4"),
        (603, "unknown item id"),
    ]
    assert whole.counts["rows_read"] == 902
    monkeypatch.setattr(columns, "_BYTES", 300)
    parts = load(config)
    assert parts.content_hash == whole.content_hash and parts.rejected.equals(whole.rejected)
