"""What jobs/baselines.py refuses before anything is trained, and how candidates are ranked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tyro

from rayrec.config import BaselinesConfig
from rayrec.data import load
from rayrec.data.settings import DataConfig
from rayrec.data.touched import Touched
from rayrec.driver.baselines import run
from rayrec.driver.lists import of_model
from rayrec.methods import baseline_args, parse
from rayrec.models import sequential
from tests.conftest import DATA

REFUSED = [
    (["--models", "morec"], "--models morec reads item vectors from titles. Add --embedder-path FOLDER"),
    (["--models", "sasrec", "sasrec"], "--models is .*, wanted at least one value, each once"),
    (["--hidden", "0"], "--hidden is 0, wanted a finite number above 0"),
    (["--dropout", "1"], "--dropout is 1.0, wanted a share below 1"),
    (["--sampled", "-1"], "--sampled is -1, wanted a finite number, 0 or more"),
    (["--wait-seconds", "nan"], "--wait-seconds is nan, wanted a finite number above 0"),
    (["--train-workers", "0"], "--train-workers is 0, wanted a finite number above 0"),
    (["--max-deaths", "-1"], "--max-deaths is -1, wanted a finite number, 0 or more"),
    (["--data", "nowhere"], "--data nowhere: there is no such file or folder"),
    (["--min-history", "60"], "--min-history is 60, wanted 1 to --history 50"),
    (["--targets", "all"], "--targets all is read by --split sequences"),
    (["--top-k", "100000"], "--top-k 100000 asks for more than the catalogue's"),
    (["--max-train-workers", "2"], "--max-train-workers: these models train in a group of fixed size"),
    (["--json", "."], r"--json \. is a folder, wanted the name of a file"),
    (["--cluster", "1x2xcpu"], "--cluster 1x2xcpu: these models have no estimate. Leave it out"),
]


@pytest.mark.parametrize(("args", "says"), REFUSED)
def test_wrong_words_are_refused(tmp_path: Path, args: list[str], says: str) -> None:
    config = tyro.cli(BaselinesConfig, args=[*args, "--runs", str(tmp_path)])
    with pytest.raises(ValueError, match=says):
        run(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data")
def test_data_that_is_split_is_not_split_again(tmp_path: Path) -> None:
    args = ["--data", str(DATA / "sprec" / "Goodreads"), "--split", "time", "--runs", str(tmp_path)]
    with pytest.raises(ValueError, match="--split time: sprec data is split already"):
        run(tyro.cli(BaselinesConfig, args=args))


def test_popular_alone_needs_no_cluster_and_ranks_candidates(tmp_path: Path) -> None:
    args = ["--history", "10", "--test-rows", "200", "--valid-rows", "50", "--models", "popular"]
    folder = run(tyro.cli(BaselinesConfig, args=[*args, "--protocol", "candidates", "--runs", str(tmp_path)]))
    assert folder is not None
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["split"] for record in records] == ["test", "valid", "adherence"]
    assert all(record["ValidRatio"] == 1 and record["decode"] == "score" for record in records[:2])
    data = load(DataConfig(history=10, protocol="candidates", test_rows=200, valid_rows=50))
    rows, titles = data.evaluated["adherence"].to_pylist(), data.catalogue.titles
    count = dict(zip(titles, data.catalogue.popularity, strict=True))
    first = [max(row["candidates"], key=lambda title: (count[title], title != row["target"])) for row in rows]
    share = sum(one == row["target"] for one, row in zip(first, rows, strict=True)) / len(rows)
    assert records[2]["AdherenceRate"] == pytest.approx(share, abs=0.02)  # equal counts have an order of their own


def test_a_baseline_has_the_rows_of_the_language_models() -> None:
    config = parse("", ["--test-rows", "77", "--seed", "3", "--protocol", "candidates", "--top-k", "1", "5"])
    made = tyro.cli(BaselinesConfig, args=baseline_args(config, "caser"))
    assert made.data == config.data and made.sequential.models == ("caser",) and made.sequential.top_k == (1, 5)
    assert (made.sequential.hidden, made.sequential.batch) == (64, 256)  # as S-DPO and RecPO have them


def test_lists_leave_out_what_was_met_or_hold_the_candidates(tmp_path: Path) -> None:
    for protocol in ("open", "candidates"):
        data = load(DataConfig(source="synthetic", protocol=protocol, test_rows=40, valid_rows=10))
        sequential.save(sequential.build("gru4rec", {"items": len(data.catalogue), "hidden": 8}, 0), tmp_path)
        made, rows = of_model(tmp_path, data, data.test, 10), data.test.to_pylist()
        if protocol == "open":
            met = Touched(data.train)
            for row, titles in zip(rows, made["masked"][0], strict=True):
                assert len(titles) == 10 and not set(titles) & {*row["history"], *met.get(row["user"], ())}
            assert made["masked"][0] != made["unmasked"][0]
        else:
            for row, titles, scores in zip(rows, *made["score"], strict=True):
                assert set(titles) <= set(row["candidates"]) and scores == sorted(scores, reverse=True)
