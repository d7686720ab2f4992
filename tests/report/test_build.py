"""The report: one page from a run folder's files alone, honest about what is missing, safe against its own data."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rayrec.config import Config, to_dict
from rayrec.report import figures
from rayrec.report.build import best_policy, build_report, last_policy
from rayrec.report.timeline import by_iteration, overlap, placed, spans, waits

EVIL = "<script>alert('x')</script> & \"Friends\" (1999)"
GENRES = [
    "Drama",
    "Comedy",
    "Thriller",
    "Action & Adventure",
    "Sci-Fi",
    "<b>Noir</b>",
    "$Musical$",
    "Horror",
    "Western",
]
ITERATIONS = 3


def evaluation(iteration: int, split: str, decode: str, n: int) -> dict[str, Any]:
    policy = "00/sft" if iteration == 0 else f"{iteration:02}/prefer"
    embedder = "title" if decode == "greedy" else None
    row: dict[str, Any] = {"kind": "evaluation", "phase": f"{iteration:02}/evaluate", "iteration": iteration}
    row |= {"policy": policy, "decode": decode, "embedder": embedder, "split": split, "N": n}
    history = [0.26, 0.21, 0.14, 0.13, 0.09, 0.07, 0.05, 0.03, 0.02]
    genres: dict[str, Any] = {"selected": GENRES, "GH": dict(zip(GENRES, history, strict=True))}
    lift = 0.003 * iteration + (0.006 if decode == "beams" else 0)
    for k, hit in ((1, 0.011), (5, 0.035), (10, 0.058)):
        hit = round(hit + lift * math.sqrt(k) - (0.03 if iteration == 3 and split == "valid" else 0), 3)
        row |= {f"HR@{k}": hit, f"NDCG@{k}": hit * (1, 0.62, 0.53)[(1, 5, 10).index(k)]}
        row |= {f"DivRatio@{k}": 0.19 / k**0.3 + 0.02 * iteration, f"ORRatio@{k}": (0.31 - 0.04 * iteration) / k**0.5}
        tilt = [(0.11 - 0.025 * iteration) * x / k**0.3 for x in (0.9, -0.4, 0.5, -0.1, -0.2, -0.4, 0.1, -0.2, -0.2)]
        genres[f"GP@{k}"] = {name: h + t for name, h, t in zip(GENRES, history, tilt, strict=True)}
        row |= {f"MGU@{k}": sum(map(abs, tilt)) / 9, f"DGU@{k}": max(tilt) - min(tilt), f"filled@{k}": 1.0}
        row[f"no_genre@{k}"] = 12 * k
    return row | {"empty": 2 - (iteration > 1), "target_outside": 9, "genres": genres}


def popular(n: int) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": "baseline", "model": "Popular", "split": "test", "N": n}
    for k, hit in ((1, 0.006), (5, 0.021), (10, 0.039)):
        row |= {f"HR@{k}": hit, f"NDCG@{k}": hit * 0.6, f"DivRatio@{k}": 1 / n, f"ORRatio@{k}": min(1, 3 / k)}
        row |= {f"MGU@{k}": 0.08, f"DGU@{k}": None, f"filled@{k}": 1.0}
    return row


def steps(count: int, start: float, end: float, prefer: bool = False) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, count + 1):
        at = step / count
        noise = 0.03 * math.sin(7.1 * step) + 0.02 * math.cos(3.3 * step * step)
        row = {
            "step": step,
            "loss": end + (start - end) * math.exp(-4 * at) + noise * start,
            "grad_norm": 1.0,
            "lr": 2e-5,
        }
        if prefer:
            row |= {"reward_margin": 1.1 * at + noise, "reward_accuracy": min(1.0, 0.5 + 0.45 * at + noise)}
        rows.append(row)
    return rows


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def make_run(folder: Path, n: int = 1000, decodes: tuple[str, ...] = ("greedy", "beams")) -> Path:
    """Write a run folder as a finished run of three iterations leaves it, with titles that try to break the page."""
    config = {"result_hash": "4b1e", "data_hash": "9f2c41aa07", "config": to_dict(Config()), "seed": 7}
    write(folder / "config.json", config | {"versions": {"python": "3.11.9", "rayrec": "0.1.0", "torch": "2.13.0"}})
    metrics: list[dict[str, Any]] = [popular(n)]
    events: list[dict[str, Any]] = []
    plan: list[dict[str, Any]] = []
    clock = {"trainers": 1_700_000_000.0, "generators": 1_700_000_000.0}

    def add(
        phase: str, lane: str, seconds: float, after: float, tokens: int, records: list, curve: list | None
    ) -> float:
        start = max(clock[lane], after) + 0.02
        clock[lane] = start + seconds
        args = {"examples": tokens // 120, "tokens": tokens, "tokens_per_s": tokens / seconds, "worker_pid": 71}
        event = {"name": phase, "cat": "phase", "ph": "X", "ts": round(start * 1e6), "dur": round(seconds * 1e6)}
        events.append(event | {"pid": lane, "tid": "lane", "args": args})
        plan.append({"phase": phase, "rows": tokens // 120, "batches": 32, "tokens": tokens, "epochs": 1})
        metrics.extend(records)
        write(folder / phase / "metrics.json", {"records": records} | ({"steps": curve} if curve else {}))
        write(folder / phase / "DONE", {"phase": phase, "files": [], "pruned": []})
        return clock[lane]

    def evaluations(t: int) -> list[dict[str, Any]]:
        return [evaluation(t, s, d, n if s == "test" else 256) for d in decodes for s in ("valid", "test")]

    ready = add("00/pretrain", "trainers", 21.0, 0, 2_000_000, [], steps(400, 6.5, 1.9))
    ready = add("00/sft", "trainers", 14.0, ready, 480_000, [], steps(64, 2.4, 1.5))
    add("00/evaluate", "generators", 9.0, ready, 120_000, evaluations(0), None)
    for t in range(1, ITERATIONS + 1):
        facts = {"kind": "negatives", "phase": f"{t:02}/negatives", "iteration": t, "rows": 2048, "equal_target": 0.013}
        facts |= {"in_catalogue": 0.74 + 0.02 * t, "in_history": 0.05, "distinct": 350 + 41 * t, "filled_random": 3}
        made = add(f"{t:02}/negatives", "generators", 15.0 + t, ready, 210_000, [facts], None)
        tuned = add(f"{t:02}/sft", "trainers", 8.0, ready, 240_000, [], steps(32, 1.6 - 0.1 * t, 1.3 - 0.05 * t))
        ready = add(
            f"{t:02}/prefer",
            "trainers",
            13.0,
            max(made, tuned),
            260_000,
            [],
            steps(60 + t, 0.69, 0.32 + 0.05 * t, True),
        )
        add(f"{t:02}/evaluate", "generators", 9.0, ready, 120_000, evaluations(t), None)
        history = [
            "Amélie (2001)",
            "千と千尋の神隠し (2001)",
            "Godfather, The (1972)",
            EVIL,
            "[bold]Se7en[/bold] (1995)",
        ] * 2
        sample = {"example_id": f"u{t}", "history": history, "chosen": EVIL, "rejected": ["Forrest Gump (1994)"]}
        write(
            folder / f"{t:02}" / "samples.json",
            [sample, sample | {"chosen": "Alien (1979)", "rejected": ["A", EVIL]}, sample],
        )
    counts = {"dropped_short": 31, "repaired_titles": 148}
    write(folder / "plan.json", {"rows": {"train": 4096, "valid": 256, "test": n}, "counts": counts, "phases": plan})
    write(folder / "trace.json", {"traceEvents": events, "attempts": [{"start": 1_700_000_000.0, "pid": 1}]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """The page as a browser sees it: its tags, its text, and everything that it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "movielens-tiny-dpo-7")
    build_report(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", decodes=("greedy",))


def test_the_page_shows_the_run_and_fetches_nothing(finished: Path) -> None:
    text = (finished / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    words = " ".join(" ".join(page.words).split())
    assert all(link.startswith("#") for link in page.links)
    assert not {"link", "img", "iframe", "script", "object"} & set(page.tags)
    assert page.tags.count("svg") == 2 + 1 + 1 + 1 + 1  # curves (greedy, beams), trade-off, genres, training, lanes
    for shown in ("seed 7", "N = 1,000 test rows", "test, greedy, embedder title, N = 1,000", "test, beams, N = 1,000",
                  "valid, greedy, embedder title, N = 256", "Popular", "BIGRec 00/sft", "iteration 2 02/prefer best",
                  "iteration 3 03/prefer last 0", "best on validation", "01/negatives", "repaired titles 148",
                  "9f2c41aa07", "torch 2.13.0", "prefer_batch",
                  "Forrest Gump (1994)", "千と千尋の神隠し (2001)", "Reward margin"):  # fmt: skip
        assert shown in words, shown
    assert "not finished" not in words
    hit_ratio = 1.96 * math.sqrt(0.055 * 0.945 / 1000)  # HR@5 of iteration 3, greedy: 0.035 + 0.009·√5
    assert f"± {hit_ratio:.3f}" in words


def test_no_text_from_data_becomes_markup(run: Path) -> None:
    write(run / "plan.json", json.loads((run / "plan.json").read_text()) | {"counts": {EVIL: 1}})
    config = json.loads((run / "config.json").read_text())
    config["config"]["model"]["model"] = config["config"]["data"]["data"] = EVIL
    write(run / "config.json", config | {"versions": {EVIL: EVIL}})
    lines = (
        (run / "metrics.jsonl").read_text().replace('"Popular"', json.dumps(EVIL)).replace("equal_target", "<script>")
    )
    (run / "metrics.jsonl").write_text(lines.replace('"greedy"', json.dumps(EVIL)))
    text = build_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text
    assert EVIL in page.words
    assert "<b>Noir</b>" in page.words and "$Musical$" in page.words  # genre names stand inside the pictures


def test_the_command_rebuilds_the_same_bytes_and_names_its_error(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / finished.name
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("report.html"))
    command = [sys.executable, "-m", "rayrec.report"]
    good = subprocess.run([*command, str(run)], capture_output=True, text=True)
    assert (good.returncode, good.stdout.strip()) == (0, str(run / "report.html"))
    assert (run / "report.html").read_bytes() == (finished / "report.html").read_bytes()
    bad = subprocess.run([*command, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert bad.returncode == 1 and "no such file" in bad.stderr and "Traceback" not in bad.stderr


def test_an_unfinished_run_says_so(run: Path) -> None:
    for phase in ("02/prefer", "02/evaluate", "03/negatives", "03/sft", "03/prefer", "03/evaluate"):
        shutil.rmtree(run / phase)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    keep = [line for line in lines if json.loads(line).get("iteration", 0) < 2]
    (run / "metrics.jsonl").write_text("\n".join(keep) + "\n")
    text = " ".join(" ".join(Page(build_report(run).read_text(encoding="utf-8")).words).split())
    assert "not finished. 9 of 15 phases are done; next is 02/prefer. Run the same command again" in text
    assert "iteration 1 01/prefer last" in text and "iteration 2 " not in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"config": to_dict(Config())})
    write(tmp_path / "plan.json", {"phases": [{"phase": "00/sft"}]})
    text = " ".join(Page(build_report(tmp_path).read_text(encoding="utf-8")).words)
    for shown in ("0 of 1 phases are done", "No evaluation is finished", "No training step", "No phase was timed",
                  "No negatives", "No sample"):  # fmt: skip
        assert shown in text


def test_nulls_and_missing_genres_are_shown_as_absent(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        for key in row:
            if "@" in key:
                row[key] = None
        if "genres" in row:
            row["genres"] = {"selected": [], "GH": None, "GP@1": None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = build_report(run).read_text(encoding="utf-8")
    assert "–" in text and 'id="genres"' not in text and best_policy(rows) is None


@pytest.mark.parametrize("name", ["config.json", "plan.json", "metrics.jsonl", "trace.json", "01/sft/metrics.json"])
@pytest.mark.parametrize("damage", [None, "[{", "3", b"\xff\xfe"])
def test_a_missing_or_damaged_file_is_named(run: Path, name: str, damage: str | bytes | None) -> None:
    (run / name).unlink()
    if damage:
        (run / name).write_bytes(damage.encode() if isinstance(damage, str) else damage)
    with pytest.raises(ValueError, match=re.escape(str(run / name))):
        build_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("damage", [None, b"[{", b"3", b"[3]", b'[{"chosen": 1}]', b"\xff\xfe"])
def test_samples_that_cannot_be_read_are_left_out(run: Path, damage: bytes | None) -> None:
    (run / "02" / "samples.json").unlink()
    if damage:
        (run / "02" / "samples.json").write_bytes(damage)
    words = Page(build_report(run).read_text(encoding="utf-8")).words
    assert any(str(run / "02" / "samples.json") in word for word in words)
    assert "Iteration 01" in words and "Iteration 02" not in words


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


def test_genre_gap_is_lists_minus_histories_at_the_smallest_k() -> None:
    genres = {"selected": ["a", "b"], "GH": {"a": 0.75, "b": 0.25}, "GP@1": None, "GP@5": {"a": 0.5, "b": 0.5}}
    assert figures.genre_gaps({"HR@1": 0, "HR@5": 0, "genres": genres}) == (5, {"a": -0.25, "b": 0.25})
    assert figures.genre_gaps({"HR@1": 0, "genres": genres}) is None and figures.genre_gaps({}) is None
