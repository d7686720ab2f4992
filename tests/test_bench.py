"""The benches run, and the contenders do the same work."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[1]
SIDES = {f"{side}{what}" for side in ("ours", "theirs") for what in ("", "_memory", "_failed")}
FIELDS = {"dtype", "against", "rounds", "ratio", "spread", "memory", "invalid", "failed", *SIDES}


def bench(tmp_path: Path, *args: str) -> list[dict]:
    command = [
        sys.executable,
        "jobs/bench.py",
        *args,
        "--quick",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / "out.json").read_text())


def fields(*setting: str, facts: tuple[str, ...]) -> set[str]:
    return {*FIELDS, *setting, *(f"{side}_{fact}" for side in ("ours", "theirs") for fact in facts)}


@pytest.mark.slow
def test_preference_steps_end_with_the_loss_of_trl(tmp_path: Path) -> None:
    records = bench(tmp_path, "preference", "--against", "trl")
    assert [record["against"] for record in records] == ["trl"]
    for record in records:
        assert set(record) == fields("k", "users", facts=("tokens_per_user", "loss"))
        assert record["failed"] is None and record["ratio"] > 0 and record["memory"] < 1
        assert record["ours_loss"] == pytest.approx(record["theirs_loss"], abs=1e-4)
        assert record["ours_loss"] < math.log(2) - 1e-6  # the second step has learnt from the first
        assert record["ours_tokens_per_user"] < record["theirs_tokens_per_user"]


@pytest.mark.slow
def test_losses_take_turns_and_groups_have_the_gradient_of_trl(tmp_path: Path) -> None:
    records = bench(tmp_path, "losses", "--against", "sft", "trl")
    assert [(record["what"], record["against"]) for record in records] == [
        *((name, "sft") for name in ("msl", "bear", "flower")),
        ("rere", "trl"),
    ]
    for record in records:
        assert set(record) == fields("what", "k", "rows", facts=("grad_norm",))
        assert record["failed"] is None and record["ratio"] > 0 and record["ours_grad_norm"] > 0
    assert records[-1]["ours_grad_norm"] == pytest.approx(records[-1]["theirs_grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_constrained_beams_are_titles(tmp_path: Path) -> None:
    (record,) = bench(tmp_path, "decode")
    facts = ("invalid", "trie_seconds", "trie_bytes")
    assert set(record) == fields("width", "titles", "prompts", facts=facts)
    assert record["failed"] is None and record["against"] == "hf" and record["width"] == 4
    assert record["ours_invalid"] == 0 < record["theirs_invalid"] == record["invalid"] and record["ratio"] > 0


def test_the_nearest_items_are_those_of_faiss_and_numpy(tmp_path: Path) -> None:
    records = bench(tmp_path, "ground")
    assert [record["against"] for record in records] == ["faiss", "numpy"]
    for record in records:
        assert set(record) == fields("items", "queries", facts=("lists",))
        assert record["failed"] is None and record["ours_lists"] == record["theirs_lists"] > 0


def test_who_passes_the_limit_has_a_record_that_says_so(tmp_path: Path) -> None:
    records = bench(tmp_path, "ground", "--limit", "0.1")
    assert [record["against"] for record in records] == ["faiss", "numpy"]
    for record in records:
        assert set(record) == fields("items", "queries", facts=("lists",))
        assert record["failed"] == record["theirs_failed"] == "did not finish in 0.1 s"
        assert record["items"] == 2000 and record["ours"] is record["theirs"] is record["ratio"] is None


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the job."""
    monkeypatch.syspath_prepend(ROOT / "jobs")
    return importlib.import_module("bench")


def test_who_passes_the_limit_leaves_no_process(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, pid = tmp_path / "slow.py", tmp_path / "pid"
    script.write_text(
        "import subprocess\nservice = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(pid)!r}, 'w').write(str(service.pid))\nservice.wait()\n"
    )
    monkeypatch.setattr(job, "__file__", str(script))
    args = job.options().parse_args(["serve", "--threads", "1", "--limit", "3"])
    assert job.run_one(args, {}, "ours") == {"failed": "did not finish in 3 s"}
    service, deadline = int(pid.read_text()), time.monotonic() + 5
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(service).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--against", "faiss", "fais"], "--against fais: ground has faiss, numpy."),
        (["--sizes", "7"], "--sizes 7: ground has 2000."),
        (["--dtype", "bfloat16"], "--dtype bfloat16: ground has float32."),
        (["--rounds", "0"], "--rounds 0: wanted 1 or more."),
    ],
)
def test_a_flag_that_selects_nothing_is_refused(
    job: Any, given: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", "ground", "--quick", *given])
    with pytest.raises(SystemExit, match="2"):
        job.main()
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("what", ["greedy", "beams"])
def test_answers_of_a_real_model_have_the_peak_of_the_whole_process(
    job: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of vLLM and ours, which stand beside them."""
    real = importlib.import_module("benches.real")
    monkeypatch.setattr(real, "examples_of", lambda *_: (None, [([1], [])], []))
    above = {"rate": 1.0, "memory": 1, "invalid": 0.0}  # what is held beyond the loaded model
    monkeypatch.setattr(real.decode, "hugging_face", lambda *_: above)
    found = real.measure("hf", what, 1, 1, "float32", "", "")
    assert found["memory"] > 0.9 * psutil.Process().memory_info().rss


#: Every contender of the benches that need Ray, in one cluster: `jobs/bench.py` gives each one of its own.
IN_ONE_CLUSTER = """
import contextlib, json, sys
from pathlib import Path
sys.path.insert(0, "jobs")
from bench import options
from benches import overhead, own_cluster, rows

found = {}
with own_cluster():
    for bench in (overhead, rows):
        bench.own_cluster = contextlib.nullcontext
        ((setting, rivals),) = bench.cases(options().parse_args(["rows", "--quick"]), Path(sys.argv[1]))
        for contender in ("ours", *rivals):
            found[contender, bench.FACTS[0]] = bench.shown(setting) | bench.measure(contender, **setting)
Path(sys.argv[1], "found.json").write_text(json.dumps([[*key, one] for key, one in found.items()]))
"""


@pytest.mark.slow
def test_the_pool_and_the_driver_lose_no_row(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_ONE_CLUSTER, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(one["rate"] > 0 and one["memory"] > 0 for *_, one in found)
    counted = {(contender, fact): (one["rows"], one[fact]) for contender, fact, one in found}
    assert counted == {
        ("ours", "answers"): (6400, 6400),
        ("ray", "answers"): (6400, 6400),
        ("ours", "written"): (2000, 2016),  # the last batch is filled
        ("ray_data", "written"): (2000, 2000),
    }


@pytest.mark.slow
def test_the_driver_of_many_cards_is_hardly_waited_for(tmp_path: Path) -> None:
    """Two cards that only keep time, on the loop, the lanes, the pool and the board of a run."""
    (record,) = bench(tmp_path, "scale")
    assert set(record) == fields("cards", "rows", facts=("phases", "path", "limits", "driver"))
    assert record["failed"] is None and record["against"] == "allowed" and 0.3 < record["ratio"] <= 1.001
    assert [line.split(":")[0] for line in record["ours_phases"]] == [
        "01/negatives",
        "01/sft",
        "01/prefer",
        "01/evaluate",
    ]
    path = [line.split()[0] for line in record["ours_path"]]
    assert path in (["01/sft", "01/prefer"], ["01/negatives", "01/prefer"])
    assert record["ours_limits"][0].startswith("training workers")  # and not the driver


@pytest.mark.slow
def test_a_service_answers_all_its_clients(tmp_path: Path) -> None:
    (record,) = bench(tmp_path, "serve")
    assert set(record) == fields("clients", "titles", facts=("p50", "p99", "refused"))
    assert record["failed"] is None and record["against"] == "single" and record["ratio"] > 0
    for side in ("ours", "theirs"):
        assert 0 < record[f"{side}_p50"] <= record[f"{side}_p99"] and record[f"{side}_refused"] == 0


@pytest.mark.slow
def test_lists_and_constrained_beams_of_others_are_titles(tmp_path: Path) -> None:
    (record,) = bench(tmp_path, "recommend")
    assert set(record) == fields("users", "what", "titles", facts=("invalid",))
    assert record["failed"] is None and record["against"] == "hf" and record["what"] == "tiny"
    assert record["ours_invalid"] == record["theirs_invalid"] == 0 and record["ratio"] > 0
