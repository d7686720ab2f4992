"""The report: one page from a run folder's files alone, honest about missing parts, safe against its own data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayrec.config import Config
from rayrec.deciding import to_dict
from rayrec.metrics import METRICS, Metric
from rayrec.metrics.intervals import Interval, jackknife, wilson
from rayrec.report import figures
from rayrec.report.build import build_report
from rayrec.report.changes import Change, changes
from rayrec.report.record import read_run
from rayrec.report.rows import best_policy, genre_gaps, last_policy
from rayrec.report.timeline import by_iteration, overlap, placed, spans, waits
from tests.runs.test_trace import dropped

EVIL = "<script>alert('x')</script> & \"Friends\" (1999)"


class Page(HTMLParser):
    """The page as a browser sees it: its tags, its text, and everything that it would fetch."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_records(run: Path, rows: list[dict[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_page_shows_the_run_and_fetches_nothing(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert all(link.startswith("#") for link in page.links)
    assert not {"link", "img", "iframe", "script", "object"} & set(page.tags)
    assert page.tags.count("svg") == 2 + 1 + 1 + 1 + 1  # curves (score, greedy), trade-off, genres, training, lanes
    config = json.loads((finished / "config.json").read_text())
    for shown in ("test, score, N = 24", "valid, greedy, N = 16", "Popular", "first SFT 00/sft",
                  "iteration 1 01/prefer last", "best on validation", "01/negatives", config["data_hash"],
                  config["versions"]["torch"], "prefer_batch", "Reward margin", "target outside"):  # fmt: skip
        assert shown in page.text, shown
    assert "not finished" not in page.text
    sample = json.loads((finished / "01" / "samples.json").read_text())[0]
    assert sample["chosen"] in page.texts and sample["rejected"][0] in page.texts
    hits = next(row["HR@5"] for row in records(finished) if row["kind"] == "evaluation" and row["iteration"] == 1)
    assert f"± {max(abs(edge - hits) for edge in wilson(hits, 24)):.3f}" in page.text


def test_the_run_tells_its_phases_and_evaluations_as_they_end(finished: Path) -> None:
    lines = finished.with_suffix(".log").read_text().splitlines()
    (told,) = (at for at, line in enumerate(lines) if "00/evaluate" in line and "test, score, N = 24: HR@5 0." in line)
    assert any("01/evaluate" in line and "starts: " in line and "phase 8 of 8" in line for line in lines)
    (explained,) = (at for at, line in enumerate(lines) if "More is better: HR (next title in the list)" in line)
    assert told < explained  # when it ends, and not with the tables


def test_perfetto_drops_no_event_of_a_run(finished: Path) -> None:
    events = json.loads((finished / "trace.json").read_text())["traceEvents"]
    assert {event["cat"] for event in events} >= {"phase", "part"} and dropped(events) == []


def test_the_metrics_of_a_choice_are_in_terminal_page_and_tensorboard(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    printed, page = finished.with_suffix(".log").read_text(), Page(finished / "report.html")
    sent = EventAccumulator(str(finished / "tensorboard"))
    sent.Reload()
    tags = sent.Tags()["scalars"]
    for split, name in (("test", "ValidRatio"), ("test", "HR@1_liked"), ("test", "AvoidanceRate"),
                        ("adherence", "AdherenceRate")):  # fmt: skip
        assert any(name in row for row in records(finished)), name
        assert name in printed and name in page.text, name
        assert f"evaluation/{split}/score/{name.replace('@', '_at_')}" in tags, tags


def test_ten_users_stand_before_and_after(finished: Path) -> None:
    found = read_run(finished).lists
    assert found and (found.title, found.first, found.last) == ("test, score, N = 24", "00/sft", "01/prefer")
    examples = pq.read_table(finished / "examples" / "test.parquet")
    targets = examples["target"].to_pylist()
    assert [user.target for user in found.users] == [targets[i * 24 // 10] for i in range(10)]
    lists = pq.read_table(finished / "01" / "evaluate" / "predictions.parquet").to_pylist()
    last = [
        row for row in lists if row["decode"] == "score" and row["example_id"] == examples["example_id"][21].as_py()
    ]
    assert found.users[-1].after == last[0]["titles"][:5] and found.users[-1].target == last[0]["target"]
    page, printed = Page(finished / "report.html"), finished.with_suffix(".log").read_text()
    assert found.users[3].before[4] in page.texts and "10 users: test, score, N = 24" in printed
    assert any(line.split("  ")[0].strip() == found.users[0].target for line in printed.splitlines())


def test_the_page_opens_with_one_user_then_what_changed_then_curves(finished: Path) -> None:
    run, page = read_run(finished), Page(finished / "report.html")
    assert run.lists and run.lists.shown
    user = run.lists.shown
    text = page.text
    order = ["One user, before and after", f"chose next: {user.target}", "01/prefer) recommends", "What changed",
             "DivRatio@5 ↑ different titles", "Over the iterations", "Results", "Training"]  # fmt: skip
    places = [text.rindex(order[0])]
    for words in order[1:]:
        places.append(text.index(words, places[-1]))  # in this order
    for title in (*user.history, *user.before, *user.after):
        assert title in page.texts
    assert user == run.lists.users[0] or user.before != user.after


def test_what_changed_has_intervals_over_users(finished: Path) -> None:
    found = {one.key: one for one in changes(finished, records(finished))}
    assert [*found][:3] == ["DivRatio@5", "ORRatio@5", "MGU@5"] and {"HR@5", "NDCG@5"} < {*found}
    ends = [row for row in records(finished) if row.get("policy") in ("00/sft", "01/prefer")]
    first, last = (row for row in ends if row["split"] == "test" and row["decode"] == "score")
    diversity = found["DivRatio@5"].difference
    assert diversity.value == pytest.approx(last["DivRatio@5"] - first["DivRatio@5"])
    assert diversity.low is not None and diversity.high is not None
    # Again from the tables, one user at a time.
    examples = pq.read_table(finished / "examples" / "test.parquet")
    users = dict(zip(examples["example_id"].to_pylist(), examples["user"].to_pylist(), strict=True))
    kept = []
    for row in (first, last):
        table = pq.read_table(finished / row["phase"] / "predictions.parquet").to_pylist()
        lists = [(users[r["example_id"]], r["titles"][:5]) for r in table
                 if r["decode"] == "score" and r["example_id"] in users]  # fmt: skip
        left = [[title for user, some in lists if user != out for title in some] for out in sorted({*users.values()})]
        kept.append(np.array([len({*titles}) / len(titles) for titles in left]))
    wanted = jackknife(diversity.value, kept[1] - kept[0])
    assert (diversity.low, diversity.high) == pytest.approx((wanted.low, wanted.high))
    assert found["MGU@5"].difference.low is None  # it has no jackknife
    assert found["HR@5"].difference.low is None  # few of 24 rows changed


@pytest.mark.parametrize(
    ("low", "high", "better", "verdict"),
    [(0.1, 0.2, "up", "better"), (0.1, 0.2, "down", "worse"), (-0.2, -0.1, "down", "better"),
     (-0.1, 0.1, "up", "no clear change"), (None, None, "up", "")],
)  # fmt: skip
def test_the_verdict_on_a_change_follows_its_interval(low: Any, high: Any, better: Any, verdict: str) -> None:
    metric = Metric("M", better, of_rows=lambda answers, k: np.zeros(0))
    assert Change(metric, "M@5", 0.0, 0.1, Interval(0.1, low, high)).verdict == verdict


def test_every_table_scrolls_in_a_box_of_its_own(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    assert text.count("<table") == text.count('<div class="scroll"><table') > 5


def test_a_picture_grows_where_a_name_would_leave_it(finished: Path) -> None:
    rows = [row for row in records(finished) if row["kind"] in ("evaluation", "baseline") and row["split"] == "test"]
    widths = []
    for name in ("Popular", "A very long name of a recommender " * 8):
        named = [row | {"model": name} if row["kind"] == "baseline" else row for row in rows]
        picture = figures.tradeoff({"test": named}, 5)
        widths.append(float(re.findall(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+)', picture)[0]))
    assert widths[0] < 760 < widths[1] and widths[0] >= 720


def test_lists_that_cannot_be_read_are_left_out(run: Path) -> None:
    (run / "00" / "evaluate" / "predictions.parquet").write_bytes(b"?")
    text = build_report(run).read_text()
    assert "the lists of users are left out" in text and "No two policies were tested." in text


def test_the_headline_names_objective_and_negatives(finished: Path) -> None:
    page = Page(finished / "report.html")
    headline = "synthetic · tiny · sdpo on candidates negatives · K = 2 · 1 iterations · seed 0 · N = 24 test rows"
    assert headline in page.text


def test_metrics_of_choices_stand_in_terminal_and_report(finished: Path) -> None:
    page, printed = Page(finished / "report.html"), finished.with_suffix(".log").read_text()
    memory = r"most memory of a process: trainers \d\.\d GB, generators \d\.\d GB"
    assert re.search(rf"resources +\d+ (s|min), {memory}", printed)
    for name in ("ValidRatio", "HR@1_liked", "AvoidanceRate", "AdherenceRate"):
        assert f"{name} ↑" in page.text and name in printed
    row = next(row for row in records(finished) if "AdherenceRate" in row)
    assert f"{row['AdherenceRate']:.3f}" in page.text


def test_a_metric_from_outside_is_shown_everywhere(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rayrec.report.terminal import print_iteration_table

    monkeypatch.setitem(METRICS, "MRR", Metric("MRR", "up", of_rows=lambda answers, k: np.zeros(0), unit="1/rank"))
    rows = records(run)
    for row in rows:
        row |= {f"MRR@{k}": 0.123 for k in (1, 5, 10)} if row["kind"] in ("evaluation", "baseline") else {}
    write_records(run, rows)
    page = Page(build_report(run))
    assert page.texts.count("MRR@5 ↑") == 1  # the tile
    assert "MRR ↑" in page.texts and "MRR  ↑" in page.texts  # the table and the curve
    print_iteration_table(rows)
    assert "MRR@5" in capsys.readouterr().out


def test_no_text_from_data_becomes_markup(run: Path) -> None:
    write(run / "plan.json", json.loads((run / "plan.json").read_text()) | {"counts": {EVIL: 1}})
    config = json.loads((run / "config.json").read_text())
    config["config"]["model"]["model"] = config["config"]["data"]["data"] = EVIL
    write(run / "config.json", config | {"versions": {EVIL: EVIL}})
    samples = json.loads((run / "01" / "samples.json").read_text())
    write(run / "01" / "samples.json", [row | {"chosen": EVIL, "rejected": [EVIL]} for row in samples])
    lines = (
        (run / "metrics.jsonl").read_text().replace('"Popular"', json.dumps(EVIL)).replace('"Drama"', '"<b>$N$</b>"')
    )
    lines = lines.replace("equal_target", "<script>").replace('"greedy"', json.dumps(EVIL))
    (run / "metrics.jsonl").write_text(lines)
    page = Page(build_report(run))
    assert "script" not in page.tags and "<script" not in (run / "report.html").read_text(encoding="utf-8")
    assert EVIL in page.texts and "<b>$N$</b>" in page.texts  # genre names stand inside the pictures


def test_the_command_rebuilds_the_same_bytes_and_names_its_error(finished: Path, run: Path) -> None:
    command = [sys.executable, "-m", "rayrec.report"]
    good = subprocess.run([*command, str(run)], capture_output=True, text=True)
    assert (good.returncode, good.stdout.strip()) == (0, str(run / "report.html"))
    assert (run / "report.html").read_bytes() == (finished / "report.html").read_bytes()
    nowhere, runs = run.parent / "nowhere", run.parent
    (runs / "other").mkdir()
    (runs / "other" / "config.json").write_text("[1]")  # of another program
    for named, told in (
        (nowhere, f"{nowhere}: there is no such run. In {runs} are {run.name}. Name one of them.\n"),
        (runs, f"{runs}: it holds runs and is none. Name one of them: {run.name}.\n"),
        ("/no-such/x", "/no-such/x: there is no such run or folder. Name one that exists.\n"),
    ):
        bad = subprocess.run([*command, str(named)], capture_output=True, text=True)
        assert (bad.returncode, bad.stderr) == (1, f"error: {told}")


def test_an_unfinished_run_says_so(run: Path) -> None:
    for phase in ("01/prefer", "01/evaluate"):
        shutil.rmtree(run / phase)
    write_records(run, [row for row in records(run) if row["phase"] not in ("01/prefer", "01/evaluate")])
    text = Page(build_report(run)).text
    assert "not finished. 6 of 8 phases are done; next is 01/prefer. Run the same command again" in text
    assert "first SFT 00/sft last" in text and "01/prefer last" not in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"config": to_dict(Config())})
    write(tmp_path / "plan.json", {"phases": [{"phase": "00/sft"}]})
    text = Page(build_report(tmp_path)).text
    for shown in ("0 of 1 phases are done", "No evaluation is finished", "No training step", "No phase was timed",
                  "No negatives", "No sample"):  # fmt: skip
        assert shown in text


def test_nulls_and_missing_genres_are_shown_as_absent(run: Path) -> None:
    rows = records(run)
    for row in rows:
        row |= {key: None for key in row if "@" in key}
        row |= {"genres": {"selected": [], "GH": None, "GP@1": None}} if "genres" in row else {}
    write_records(run, rows)
    text = build_report(run).read_text(encoding="utf-8")
    assert "–" in text and 'id="genres"' not in text and best_policy(rows) is None


@pytest.mark.parametrize("name", ["config.json", "plan.json", "metrics.jsonl", "trace.json", "01/sft/metrics.json"])
@pytest.mark.parametrize("damage", [None, b"[{", b"3", b"\xff\xfe"])
def test_a_missing_or_damaged_file_is_named(run: Path, name: str, damage: bytes | None) -> None:
    (run / name).unlink()
    if damage:
        (run / name).write_bytes(damage)
    with pytest.raises(ValueError, match=re.escape(str(run / name))):
        read_run(run)


@pytest.mark.parametrize("damage", [None, b"[{", b"3", b"[3]", b'[{"chosen": 1}]', b"\xff\xfe"])
def test_samples_that_cannot_be_read_are_left_out(run: Path, damage: bytes | None) -> None:
    (run / "01" / "samples.json").unlink()
    if damage:
        (run / "01" / "samples.json").write_bytes(damage)
    found = read_run(run)
    assert found.samples == {} and str(run / "01" / "samples.json") in found.unread[0]


def test_the_page_names_samples_that_are_left_out(run: Path) -> None:
    (run / "01" / "samples.json").unlink()
    text = Page(build_report(run)).text
    assert str(run / "01" / "samples.json") in text and "No sample was kept." in text


def test_last_and_best_policy() -> None:
    def row(iteration: int, split: str, score: float) -> dict[str, Any]:
        found = {"kind": "evaluation", "iteration": iteration, "policy": f"{iteration:02}", "split": split}
        return found | {"HR@1": 0.0, "HR@10": 0.0, "NDCG@1": -score, "NDCG@10": score}

    rows = [row(0, "valid", 0.1), row(1, "valid", 0.3), row(2, "valid", 0.3), row(2, "test", 0.9), row(3, "test", 0.0)]
    assert last_policy(rows) == "03" and last_policy([]) is None
    assert best_policy(rows) == ("01", "NDCG@10 0.300; valid") and best_policy(rows[3:]) is None


def lane(name: str, who: str, start: float, end: float) -> dict[str, Any]:
    return {
        "name": name,
        "cat": "phase",
        "ph": "X",
        "ts": start * 1e6,
        "dur": (end - start) * 1e6,
        "pid": who,
        "tid": "lane",
    }


def test_waits_and_overlap_by_hand() -> None:
    events = [
        lane("00/sft", "trainers", 100, 110),
        lane("01/sft", "trainers", 110, 114),
        lane("01/negatives", "generators", 110, 120),
        lane("01/prefer", "trainers", 120, 130),
        {"name": "noise", "cat": "step", "ph": "X"},
    ]
    phases = spans(events)
    found = [(w.lane, w.start, w.end, w.phase, w.cause and w.cause.phase) for w in waits(phases)]
    assert found == [
        ("trainers", 14.0, 20.0, "01/prefer", "01/negatives"),
        ("generators", 0.0, 10.0, "01/negatives", "00/sft"),
    ]
    total = overlap(phases)  # 30 s with work, 4 s with both lanes: (24 + 10)/30 lanes
    assert (total.working, total.together) == (30.0, 4.0) and total.lanes == pytest.approx(34 / 30)
    assert by_iteration(phases) == {0: (10.0, 1.0), 1: (20.0, pytest.approx(24 / 20))}
    late = spans([*events, lane("00/evaluate", "generators", 105, 112)])  # 12 s, of which 7 s beside the trainers
    assert by_iteration(late)[0] == (12.0, pytest.approx((12 + 7) / 12))
    assert overlap([]).lanes == 0.0
    works = [("trainers", ["a", "b"]), ("generators", ["c"]), ("trainers", ["b", "d"]), ("trainers", [])]
    assert placed([{"pid": lane, "args": {"nodes": nodes} if nodes else {}} for lane, nodes in works]) == {
        "generators": ["c"],
        "trainers": ["a", "b", "d"],
    }
    with pytest.raises(ValueError, match="needs name, pid, ts and dur"):
        spans([{"cat": "phase", "name": "x"}])


def test_a_long_pause_between_attempts_is_left_out_and_said() -> None:
    picture = figures.lanes(spans([lane("00/sft", "trainers", 0, 10), lane("01/sft", "trainers", 7210, 7220)]))
    assert "7,200 s left out" in picture


def test_genre_gap_is_lists_minus_histories() -> None:
    genres = {"selected": ["a", "b"], "GH": {"a": 0.75, "b": 0.25}, "GP@1": None, "GP@5": {"a": 0.5, "b": 0.5}}
    assert genre_gaps({"genres": genres}, 5) == {"a": -0.25, "b": 0.25}
    assert genre_gaps({"genres": genres}, 1) is None and genre_gaps({}, 5) is None
