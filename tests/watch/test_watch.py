"""The watch: its measures by hand, its limits, its files."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrec.data.catalogue import Catalogue
from rayrec.metrics import evaluate
from rayrec.recommend.output import RECOMMENDATIONS
from rayrec.watch import limits, lists
from rayrec.watch.__main__ import main
from rayrec.watch.measures import gini, measure

ROOT = Path(__file__).parents[2]
TITLES = [f"Film {number}" for number in range(8)]


def written(folder: Path, name: str, policy: str, day: int, shown: dict[str, list[str]]) -> str:
    """A file as jobs/recommend.py writes it, with one bad row."""
    about = {"policy": policy, "catalogue": "c", "created": datetime(2026, 5, day, 12, tzinfo=UTC)}
    rows: list[dict[str, Any]] = [
        {
            "user": user,
            "item": [TITLES.index(title) for title in titles],
            "title": titles,
            "logprob": [-1.0] * len(titles),
            "inclusion": [None] * len(titles),
            "fallback": user.startswith("new"),
            "error": None,
            **about,
        }
        for user, titles in shown.items()
    ]
    empty = {"item": [], "title": [], "logprob": [], "inclusion": [], "fallback": False}
    rows.append({"user": "bad", "error": "history is 3, wanted a list of titles", **empty, **about})
    pq.write_table(pa.Table.from_pylist(rows, schema=RECOMMENDATIONS), folder / name)
    return str(folder / name)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    first = {"ann": TITLES[:3], "bob": TITLES[:3], "cid": TITLES[1:4], "new1": TITLES[:3]}
    second = {"ann": TITLES[:3], "bob": TITLES[3:6], "cid": TITLES[5:8], "new1": [TITLES[0], *TITLES[6:8]]}
    return [
        written(tmp_path, "monday.parquet", "a/01/prefer", 4, first),
        written(tmp_path, "tuesday.parquet", "a/01/prefer", 5, second),
        written(tmp_path, "other.parquet", "a/02/prefer", 5, second),
    ]


def catalogue() -> Catalogue:
    made = Catalogue.from_items(TITLES, [["Drama"] if n % 2 else ["War", "Drama"] for n in range(8)])
    return made.with_training(np.array([9, 8, 7, 6, 5, 4, 0, 0]), ["Drama", "War"])


def test_measures_are_those_of_the_definitions(files: list[str]) -> None:
    shown = lists.read_lists(files)
    assert [tuple(key) for key in shown] == [
        ("a/01/prefer", "2026-05-04"),
        ("a/01/prefer", "2026-05-05"),
        ("a/02/prefer", "2026-05-05"),
    ]
    outcomes = {"ann": TITLES[2], "bob": TITLES[7], "cid": TITLES[1]}
    histories = {"ann": TITLES[:2], "bob": TITLES[4:6], "cid": TITLES[7:8]}
    found = {key: measure(key, table, catalogue(), 3, outcomes, histories) for key, table in shown.items()}
    first, second, other = found.values()
    value = {name: one.value for name, one in first.measures.items()}
    assert first.lists == 4  # the bad row is none
    assert value["HR"] == pytest.approx(2 / 3) and value["DivRatio"] == 4 / 12 and value["ORRatio"] == 11 / 12
    assert value["coverage"] == 4 / 8 and value["new"] == 0 and value["fallback"] == 1 / 4
    assert second.measures["new"].value == 4 / 12 and second.measures["coverage"].value == 1
    assert {name: one.value for name, one in other.measures.items()} == {
        name: one.value for name, one in second.measures.items()
    }
    for name in ("HR", "DivRatio", "ORRatio", "new", "fallback"):
        one = second.measures[name]
        assert one.low is not None and one.high is not None and one.value is not None
        assert 0 <= one.low <= one.value <= one.high <= 1

    # The run's own metrics, of the same lists.
    rows = [row for row in next(iter(shown.values())).to_pylist() if row["user"] in outcomes]
    names = [row["user"] for row in rows]
    predictions = {"example_id": names, "titles": [row["titles"] for row in rows]}
    predictions = pa.table(predictions | {"target": [outcomes[user] for user in names]})
    examples = predictions.append_column("history", pa.array([histories[user] for user in names]))
    examples = examples.append_column("target_rating", pa.array([1.0] * len(names)))
    numbers = evaluate(predictions, examples.append_column("split", pa.array(["test"] * len(names))), catalogue(), (3,))
    key, table = next(iter(shown.items()))
    table = table.filter(pa.array([user in outcomes for user in table["user"].to_pylist()]))
    own = measure(key, table, catalogue(), 3, outcomes, histories)
    for name in ("HR", "DivRatio", "ORRatio", "MGU"):
        assert own.measures[name].value == pytest.approx(numbers[f"{name}@3"]), name


def test_what_is_not_known_is_not_told(files: list[str]) -> None:
    plain = Catalogue.from_items(TITLES, [()] * 8).with_training(np.zeros(8, int), [])
    key, table = next(iter(lists.read_lists(files).items()))
    found = measure(key, table, plain, 3, {}, {})
    assert [name for name, one in found.measures.items() if one.value is None] == ["HR", "MGU", "new"]
    with pytest.raises(ValueError, match=r"places of a/01/prefer, 2026-05-04, have titles .* such as 'Film 2'"):
        measure(key, table, Catalogue.from_items(TITLES[:2], [()] * 2), 3, {}, {})


def test_an_interval_of_lists_of_different_lengths_holds_its_share(tmp_path: Path) -> None:
    old, new = [*range(6)] * 5, 15
    shown = {f"o{row}": [TITLES[item]] for row, item in enumerate(old)} | {f"n{row}": TITLES[6:] for row in range(new)}
    ((key, table),) = lists.read_lists([written(tmp_path, "some.parquet", "a", 4, shown)]).items()
    one = measure(key, table, catalogue(), 3, {}, {}).measures["new"]
    assert one.value is not None and one.low is not None and one.high is not None
    assert one.low < one.value == 2 * new / (len(old) + 2 * new) < one.high


def test_gini_is_that_of_the_pairs() -> None:
    draw = np.random.default_rng(0)
    for counts in (np.ones(5, int), np.array([0, 0, 7]), draw.integers(0, 9, 40)):
        pairs = np.abs(counts[:, None] - counts[None]).sum() / (2 * len(counts) ** 2 * counts.mean())
        assert gini(counts) == pytest.approx(pairs, abs=1e-12)
    assert gini(np.zeros(3, int)) is None


def test_limits_are_of_the_last_period_of_each_policy(files: list[str]) -> None:
    watched = [measure(key, table, catalogue(), 3, {}, {}) for key, table in lists.read_lists(files).items()]
    assert limits.passed(watched, limits.parse(["ORRatio<0.9", "DivRatio>.5", "new < 0.5"])) == []
    wrong = limits.passed(watched, limits.parse(["coverage<0.9", "HR>0.1"]))
    assert wrong == [
        f"{policy}, 2026-05-05: {text}"
        for policy in ("a/01/prefer", "a/02/prefer")
        for text in ("coverage is 1, wanted coverage<0.9", "HR is undefined, wanted HR>0.1")
    ]
    for text in ("ORRatio", "ORRatio<x", "Other<1", "ORRatio<=1"):
        with pytest.raises(ValueError, match=r"wanted NAME<NUMBER or NAME>NUMBER with one of HR, DivRatio"):
            limits.parse([text])


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        lists.read_lists([str(tmp_path / "none.parquet")])
    pq.write_table(pa.table({"user": ["a"]}), tmp_path / "users.parquet")
    (tmp_path / "text.jsonl").write_text('{"user": "a"}\n')
    (tmp_path / "text.csv").write_text("a\n")
    for name in ("users.parquet", "text.jsonl", "text.csv"):
        with pytest.raises(ValueError, match=r"found no lists of jobs/recommend\.py"):
            lists.read_lists([str(tmp_path / name)])
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1" + b"\1" * 200 + b"\x10\0\0\0PAR1")
    with pytest.raises(ValueError, match=r"found no lists of jobs/recommend\.py"):
        lists.read_lists([str(tmp_path / "damaged.parquet")])
    with pytest.raises(ValueError, match=r"text\.jsonl: found two periods of one name, .* Rename one"):
        lists.read_lists([str(tmp_path / "other" / "text.jsonl"), str(tmp_path / "text.jsonl")])
    bad = written(tmp_path, "bad.parquet", "p", 4, {})
    with pytest.raises(ValueError, match="all rows have an error"):
        lists.read_lists([bad])
    with pytest.raises(ValueError, match=r"--outcomes .*csv: .* with `user` and `title`"):
        lists.read_outcomes(str(tmp_path / "text.csv"))


def test_titles_may_hold_any_character_and_outcomes_may_lack_a_title(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    titles = ["Line\u2028separator", "Next\x85line", "Plain"]
    line: dict[str, Any] = {"input": {"userId": "ann"}, "error": None}
    line["output"] = {"recommendedItems": titles, "policy": "p", "fallback": False}
    (tmp_path / "monday.jsonl").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    ((key, table),) = lists.read_lists([str(tmp_path / "monday.jsonl")]).items()
    assert table["titles"].to_pylist() == [titles]
    (tmp_path / "after.csv").write_text("user,title\nann,\n,Plain\nbob,Other\nbob,Plain\n")
    outcomes = lists.read_outcomes(str(tmp_path / "after.csv"))
    assert outcomes == {"bob": "Plain"} and "2 rows of --outcomes have no user or no title" in caplog.text
    assert "1 rows of --outcomes name a user again; the last row of a user counts" in caplog.text
    found = measure(key, table, Catalogue.from_items(titles, [()] * 3), 3, outcomes, {})
    assert found.measures["HR"].value is None and found.measures["coverage"].value == 1


def command(folder: Path, *args: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "rayrec.watch", *args, "--out", str(folder / "watch.html")]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_tells_and_fails_where_a_limit_is_passed(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(catalogue().to_table(), tmp_path / "catalogue.parquet")
    (tmp_path / "after.csv").write_text(f"user,title\nann,{TITLES[2]}\n")
    line = {"input": {"userId": "ann"}, "error": None}
    line["output"] = {"recommendedItems": TITLES[:2], "scores": [], "policy": "<b>p</b>", "fallback": False}
    (tmp_path / "wednesday.jsonl").write_text(json.dumps(line) + "\n")
    given = [*files, str(tmp_path / "wednesday.jsonl"), "--catalogue", str(tmp_path / "catalogue.parquet"), "--k", "3"]
    given += ["--outcomes", str(tmp_path / "after.csv"), "--json", str(tmp_path / "watch.json")]
    done = command(tmp_path, *given, "--limits", "DivRatio>0.1")
    assert done.returncode == 0, done.stderr
    page, numbers = (tmp_path / "watch.html").read_text(), json.loads((tmp_path / "watch.json").read_text())
    assert page.count("a/01/prefer") >= 2 and "<svg" in page and "<script" not in page and "src=" not in page
    assert "<b>p</b>" not in page and "&lt;b&gt;p&lt;/b&gt;" in page
    assert [one["period"] for one in numbers] == ["wednesday", "2026-05-04", "2026-05-05", "2026-05-05"]
    assert numbers[1]["HR"]["value"] == 1 and numbers[1]["lists"] == 4 and numbers[2]["MGU"]["value"] is None
    given += ["--out", str(tmp_path / "watch.html")]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--limits", "DivRatio>0.9"])
    said = capsys.readouterr().err
    assert ended.value.code == 3 and "a/02/prefer, 2026-05-05: DivRatio is 0.6667, wanted DivRatio>0.9" in said
    assert "DivRatio is 0.6667" in (tmp_path / "watch.html").read_text()
    with pytest.raises(SystemExit, match="error: --limits 'Other>1'"):
        main([*given, "--limits", "Other>1"])
