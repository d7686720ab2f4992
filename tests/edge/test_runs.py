"""Whole runs: what they leave, what overlap changes, and what a death changes."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from rayrec.cluster.address import has_gpu
from rayrec.data import load, preferences
from rayrec.methods import parse
from rayrec.runs.manifest import CHECKPOINT
from tests.edge.conftest import TOY, Command, contents, descendants, gone, read_trace, title
from tests.faults.kinds import named

PHASES = ["00/pretrain", "00/baseline", "00/sft", "00/evaluate"]
PHASES += [f"{t:02d}/{kind}" for t in (1, 2) for kind in ("negatives", "sft", "prefer", "evaluate")]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_every_phase_metrics_and_report(overlapped: Path) -> None:
    assert all((overlapped / phase / "DONE").exists() for phase in PHASES)
    rows = [r for r in records(overlapped) if r["kind"] == "evaluation"]
    assert {(r["iteration"], r["decode"], r["split"], r["N"]) for r in rows} == {
        (t, decode, split, n)
        for t in range(3)
        for decode in ("greedy", "beams")
        for split, n in (("test", 128), ("valid", 64))
    }
    for row in rows:
        assert {
            f"{m}@{k}" for m in ("HR", "NDCG", "DivRatio", "ORRatio", "MGU", "DGU") for k in (1, 5, 10)
        } <= row.keys()
        assert row["decode"] == "greedy" or row["filled@10"] == 1  # every constrained beam is a title
    report = (overlapped / "report.html").read_text()
    assert "02/prefer" in report and "Popular" in report


def counted(folder: Path) -> dict[str, Counter]:
    """How often every table of a run has each example, or each example with what decoded it; padding is none."""
    found: dict[str, Counter] = defaultdict(Counter)
    for file in folder.rglob("*.parquet"):
        if file != folder / "catalogue.parquet":
            rows = pq.ParquetFile(file).read()
            rows = rows.filter(pc.field("weight") > 0) if "weight" in rows.column_names else rows
            keys = [rows[name].to_pylist() for name in ("example_id", "decode") if name in rows.column_names]
            found[f"{file.parent.relative_to(folder)}/{file.stem.partition('-')[0]}"].update(zip(*keys, strict=True))
    return found


def test_no_row_is_lost_or_doubled_in_any_table(overlapped: Path) -> None:
    config = parse("", [*TOY])
    data, model, train = load(config.data), config.model, config.train

    def drawn(start: int, count: int, name: str) -> Counter:
        return each(preferences.draw(data.train, start, count, config.data.seed, name))

    def each(rows: pa.Table, *decodes: str) -> Counter:
        ids = rows["example_id"].to_pylist()
        return Counter(itertools.product(ids, decodes) if decodes else zip(ids, strict=True))

    evaluated, turn = pa.concat_tables(data.evaluated.values()), train.rows_per_iteration
    wanted = {f"examples/{split}": each(rows) for split, rows in data.evaluated.items()}
    wanted["00/pretrain/rows"] = drawn(0, model.pretrain_steps * model.pretrain_batch, "pretrain")
    wanted["00/sft/rows"] = drawn(0, train.first_rows, "first")
    wanted["00/baseline/predictions"] = each(evaluated, "popular")
    for t in range(3):
        wanted[f"{t:02d}/evaluate/predictions"] = each(evaluated, "greedy", "beams")
        for table in ("negatives/self_play", "sft/rows", "prefer/rows") if t else ():
            wanted[f"{t:02d}/{table}"] = drawn((t - 1) * turn, turn, "iterations")
    assert {max(found.values()) for found in wanted.values()} == {1}
    assert counted(overlapped) == wanted


def test_every_preference_row_is_traced_to_its_policy(overlapped: Path) -> None:
    rows = pq.read_table(overlapped / "02" / "prefer" / "rows.parquet").to_pylist()
    assert {row["policy"] for row in rows} == {"01/prefer"}
    assert sorted((row["step"], row["slot"]) for row in rows) == [(s, i) for s in range(24) for i in range(8)]
    negatives = pq.read_table(sorted((overlapped / "02" / "negatives").glob("*.parquet"))).to_pylist()
    assert {(n["example_id"], n["text"]) for n in negatives} == {(r["example_id"], r["rejected"][0]) for r in rows}


def test_training_moves_the_weights_and_starts_at_ln_2(overlapped: Path) -> None:
    policies = [overlapped / phase / "policy" / "model.safetensors" for phase in ("00/sft", "01/sft", "01/prefer")]
    first, tuned, preferred = map(load_file, policies)
    assert all((first[n] != tuned[n]).any() and (tuned[n] != preferred[n]).any() for n in first if "norm" not in n)
    steps = json.loads((overlapped / "01" / "prefer" / "metrics.json").read_text())["steps"]
    assert abs(steps[0]["loss"] - 0.6931471805599453) < 1e-6  # ln 2: the reference is the policy itself
    assert steps[-1]["reward_margin"] > 0


def test_the_lanes_overlap(overlapped: Path) -> None:
    events = [e for e in read_trace(overlapped)["traceEvents"] if e["cat"] == "phase"]
    spans = {e["name"]: (e["ts"], e["ts"] + e["dur"]) for e in events}
    assert spans["01/negatives"][0] < spans["01/sft"][1] and spans["01/sft"][0] < spans["01/negatives"][1]


def test_deaths_change_nothing(runs: Path, overlapped: Path) -> None:
    """A generator, a worker, Ray Train's controller and the driver die inside phases; a file is cut short."""
    draw = random.Random(17)
    args = ("--decode", "greedy", "beams", "--keep", "all", "--checkpoint-steps", "5")
    command = Command(runs, "killed", *args)

    def kill(word: str, who: str, *phases: str) -> None:
        """SIGKILL one of the processes with ``word``, at a random moment of the first phase that it finds at work."""
        struck = command.at_some_moment(draw, phases, 0.3)
        os.kill(draw.choice(named(word, command.process.pid)), signal.SIGKILL)
        command.until(lambda trace: f"{who} died" in command.log.read_text(), f"word of a death in {struck}")
        print(f"{word} killed in {struck}")

    kill("ray::Generator", "generator 0", "00/evaluate", "01/negatives", "01/evaluate")
    kill("ray::RayTrainWorker", "a training worker of 1", "01/prefer", "02/sft")
    told = " ".join(map(title, descendants(command.process.pid)))
    address = told.partition("--gcs-address=")[2].split()[0]
    with pytest.raises(ValueError, match="InvalidAuthToken"):  # a run's own cluster has a token that nobody else knows
        has_gpu(parse("", ["--address", address]))
    kill("ray::TrainController", "Ray Train's controller of 1", "02/sft", "02/prefer")
    checkpoints = command.folder / "02" / "prefer" / CHECKPOINT
    command.until(lambda trace: any(checkpoints.glob("*/DONE")), "checkpoint of 02/prefer")
    time.sleep(draw.uniform(0, 0.1))
    command.kill()
    assert not (command.folder / "02" / "prefer" / "DONE").exists()
    damaged = command.folder / "01" / "prefer" / "policy" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])

    command = Command(runs, "killed", *args)
    folder = command.wait()
    said, events = command.log.read_text(), read_trace(folder)["traceEvents"]
    assert "01/prefer: finished, but policy/model.safetensors is damaged" in said
    done = {e["name"]: e["args"] for e in events}
    assert {Path(done[name]["taken_from"]).parent for name in ("00/pretrain", "00/sft")} == {runs / ".shared"}
    resumed = done["02/prefer"]
    assert resumed["resumed_at"] >= 5
    assert resumed["examples"] == 2 * (192 - 8 * resumed["resumed_at"])  # the reference's pass, and training
    assert contents(folder) == contents(overlapped)
    assert (folder / "metrics.jsonl").read_bytes() == (overlapped / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_worker_that_dies_in_the_reference_changes_nothing(runs: Path) -> None:
    args = ("--iterations", "1", "--rows-per-iteration", "2048", "--test-rows", "32", "--valid-rows", "32")
    args += ("--decode", "greedy", "--checkpoint-steps", "20")
    command = Command(runs, "reference", *args)

    def in_the_middle(trace: dict) -> bool:
        return trace["running"].get("01/prefer", {}).get("reference", 0) > 40

    trace = command.until(in_the_middle, "middle of the reference")
    os.kill({e["name"]: e["args"] for e in trace["traceEvents"]}["01/sft"]["worker_pid"], signal.SIGKILL)
    folder = command.wait()
    assert "resumed_at" not in {e["name"]: e["args"] for e in read_trace(folder)["traceEvents"]}["01/prefer"]
    assert contents(folder) == contents(Command(runs, "undisturbed reference", *args).wait())


@pytest.mark.slow
def test_generation_goes_on_with_the_parts_that_are_left(
    runs: Path, overlapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C, which ends every process; what is kept lies in a store that is a folder."""
    monkeypatch.setenv("RAYREC_COPIES", str(tmp_path / "copies"))
    store = {"url": f"file://{tmp_path}/store"}
    args = ("--method", "BIGRec", "--engine", "torch", "--test-rows", "1000", "--checkpoint-seconds", "0.05")
    args += ("--decode", "greedy", "beams")
    command = Command(runs, "cut short", *args, **store)
    evaluate = command.folder / "00" / "evaluate"
    command.until(lambda trace: len(list(evaluate.glob(f"{CHECKPOINT}/*/DONE"))) >= 3, "kept parts")
    started = descendants(command.process.pid)
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(30) == 130
    assert "the same command goes on" in command.log.read_text()
    assert gone(started) and not (evaluate / "DONE").exists()
    kept = [file.with_name("outputs.parquet") for file in evaluate.glob(f"{CHECKPOINT}/*/DONE")]
    had = {(one.parent.name[:8], number) for one in kept for number in pq.read_table(one)["part"].to_pylist()}
    whole = Command(runs, "whole generation", *args)  # beside the other: they wait most of the time
    folder = Command(runs, "cut short", *args, **store).wait()
    trace = read_trace(folder)
    last = [e for e in trace["traceEvents"] if e["ts"] > trace["attempts"][-1]["start"] * 1e6 and e["cat"] == "part"]
    asked = [(e["name"], e["args"]["part"]) for e in last]
    assert len(had) >= 3 and len(asked) == len({*asked}) == 2 * 17 - len(had)
    assert not (evaluate / CHECKPOINT).exists()
    assert contents(folder) == contents(tmp_path / "store" / "cut short") == contents(whole.wait())
