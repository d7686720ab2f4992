"""Data in an object store: a real S3 server on loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data import load
from rayrec.data.settings import DataConfig
from rayrec.data.sources.remote import fetch
from rayrec.data.store import copy_of, open_url
from rayrec.driver.names import run_folder
from rayrec.methods import parse

PLAYS = [(f"u{n // 6}", "abc"[n % 3], 1 + n % 5, 1_000_000_000 + 86_400 * n) for n in range(6)]
PLAYS_CSV = "user,item,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in PLAYS)
ITEMS_CSV = "item,title\na,A\nb,B\nc,C\n"


@pytest.fixture
def put(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | bytes]], str]:
    """Write objects into a bucket, and return the address of its folder."""
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "copies"))

    def write(files: dict[str, str | bytes]) -> str:
        url = f"s3://{bucket}/logs/films"
        system, at = open_url(url)
        for name, content in files.items():
            with system.open_output_stream(f"{at}/{name}", compression=None) as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
        return url

    return write


def table(rows: list[tuple], names: tuple[str, ...]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}), sink)
    return sink.getvalue().to_pybytes()


def local(folder: Path, files: dict[str, str | bytes]) -> DataConfig:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return DataConfig(data=str(folder), history=2)


CASES: dict[str, dict[str, str | bytes]] = {
    "csv": {"interactions.csv": PLAYS_CSV, "items.csv": ITEMS_CSV},
    "parquet": {
        "items.parquet": table([("a", "A"), ("b", "B"), ("c", "C")], ("item", "title")),
        "interactions/day=1/x.parquet": table(PLAYS[:3], ("user", "item", "rating", "timestamp")),
        "interactions/day=2/x.parquet": table(PLAYS[3:], ("user", "item", "rating", "timestamp")),
    },
    "movielens-100k": {
        "u.data": "".join("\t".join(map(str, row)) + "\n" for row in PLAYS),
        "u.item": "".join(f"{i}|{i.upper()}|||http://x|" + "|".join("1" + "0" * 18) + "\n" for i in "abc"),
    },
    "minionerec": {
        "info/Toys.txt": "<a>\tA\ta\n<b>\tB\tb\n<c>\tC\tc\n",
        **{
            f"{split}/Toys.csv": f"user_id,history_item_id,item_id\nu,\"['a', 'b']\",{target}\n"
            for split, target in (("train", "c"), ("valid", "a"), ("test", "b"))
        },
    },
}


@pytest.mark.parametrize("source", CASES)
def test_formats_are_read_from_a_store_as_from_a_folder(
    source: str, put: Callable[[dict[str, str | bytes]], str], tmp_path: Path
) -> None:
    wanted = load(local(tmp_path / "folder", CASES[source]))
    url = put(CASES[source] | {"huge.bin": b"x", "notes/readme.txt": "none of it is read"})
    found = load(DataConfig(data=url, history=2))
    assert (found.source, found.content_hash) == (source, wanted.content_hash)
    copied = {str(path.relative_to(copy_of(url) / "data")) for path in (copy_of(url) / "data").rglob("*.*")}
    assert copied == {*CASES[source]}


def test_a_log_with_titles_is_read_from_a_store(put: Callable[[dict[str, str | bytes]], str], tmp_path: Path) -> None:
    rows = [(user, item, item.upper(), rating, time) for user, item, rating, time in PLAYS]
    log = table(rows, ("user", "item", "title", "rating", "timestamp"))
    wanted = load(local(tmp_path / "folder", CASES["csv"])).content_hash
    url = put({"days/day=1/x.parquet": log, "days/more/y.parquet": log, "my.parquet": log, "other.csv": ""})
    for data, copied in ((f"{url}/days", "day=1/x.parquet"), (f"{url}/my.parquet", "my.parquet")):
        found = load(DataConfig(data=data, history=2))
        assert (found.source, found.content_hash) == ("parquet", wanted)
        here = copy_of(data) / "data"
        assert [str(path.relative_to(here)) for path in here.rglob("*.*")] == [copied]


def test_a_changed_object_is_copied_again_and_others_are_not(put: Callable[[dict[str, str | bytes]], str]) -> None:
    url = put(CASES["csv"])
    first = load(DataConfig(data=f"{url}/items.csv", history=2))  # a file stands for its folder
    again = load(DataConfig(data=url, history=2))
    assert again.content_hash == first.content_hash
    before = {path.name: path.stat().st_ino for path in (copy_of(url) / "data").iterdir()}
    load(DataConfig(data=url, history=2))
    assert {path.name: path.stat().st_ino for path in (copy_of(url) / "data").iterdir()} == before
    put({"items.csv": ITEMS_CSV.replace("C", "D")})  # of the same size
    os.utime(copy_of(url) / "data" / "items.csv")
    assert load(DataConfig(data=url, history=2)).catalogue.titles == ["A", "B", "D"]


def test_two_processes_copy_one_folder_one_after_the_other(
    put: Callable[[dict[str, str | bytes]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, copy, others = put(CASES["csv"]), shutil.copyfileobj, list[Future[Path]]()

    def slow(source: BinaryIO, target: BinaryIO, length: int) -> None:
        copy(source, target, length)
        if not others:  # the other finds a file that is not finished
            others.append(pool.submit(fetch, url, [(("items.csv",), ())]))
            wait(others, timeout=1)

    monkeypatch.setattr("rayrec.data.sources.remote.shutil.copyfileobj", slow)
    with ThreadPoolExecutor() as pool:
        assert fetch(url, [(("items.csv",), ())]) == others[0].result()


def test_a_store_that_cannot_be_read_is_refused_in_one_line(put: Callable[[dict[str, str | bytes]], str]) -> None:
    url = put(CASES["csv"])
    for wrong, message in (
        (f"{url}/none", "there is no such file or folder"),
        ("s3://no-such-bucket-here/films", "--data s3://no-such-bucket-here/films: "),
        ("ftp://host/films", "Name a folder, or a store as s3://BUCKET/FOLDER"),
        ("s3://me:secret@bucket/films", "--data has a user or a key in its address"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            load(DataConfig(data=wrong))
        assert "\n" not in str(error.value) and "me:secret" not in str(error.value)
    put({"items.csv": "item,name\na,A\n", "interactions.csv": "user,when\nu,1\n"})
    with pytest.raises(ValueError, match=f"--data {url}, of which .* is a copy: .*are missing"):
        load(DataConfig(data=url))


def test_an_address_of_this_machine_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "copies"))
    wanted = load(local(tmp_path / "folder", CASES["csv"]))
    assert load(DataConfig(data=f"file://{tmp_path}/folder", history=2)).content_hash == wanted.content_hash
    assert not (tmp_path / "copies").exists()
    shutil.rmtree(tmp_path / "folder")
    with pytest.raises(ValueError, match="there is no such file or folder"):
        load(DataConfig(data=f"file://{tmp_path}/folder"))


def test_runs_are_named_after_the_folder_in_the_store() -> None:
    for url in ("s3://bucket/logs/films", "s3://bucket/logs/films/?region=eu-west-1", "s3://films"):
        assert run_folder(parse("", ["--data", url, "--method", "BIGRec"])).name.startswith("films-tiny-bigrec")
