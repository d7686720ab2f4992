"""The terminal: plans with any keys, tables that name what they depend on, and text that cannot act as markup."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rayrec.report import rows, terminal

ROW = {
    "kind": "evaluation", "iteration": 1, "policy": "01/prefer", "split": "test", "decode": "greedy",
    "embedder": "title", "N": 1000, "HR@1": 0.01, "HR@5": 0.035, "NDCG@5": 0.0214, "DivRatio@5": 0.19,
    "ORRatio@5": None, "MGU@5": 0.02,
}  # fmt: skip


def paper(terminal_width: int = 120, tty: bool = False) -> Console:
    return Console(file=io.StringIO(), width=terminal_width, force_terminal=tty, highlight=False, emoji=False)


def read(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plan_says_everything_and_forgives_what_is_absent() -> None:
    page = paper()
    terminal.print_plan(
        {
            "folder": "runs/[bold]x",
            "rows": {"train": 4096, "test": 1000},
            "counts": {"dropped_short": 3},
            "model": {"name": "tiny", "parameters": 1_234_567, "template": "compact", "lora_rank": 0},
            "resources": {"train_workers": 2, "device": "cpu", "threads": None},
            "disk_bytes": 3 * 1024**2,
            "phases": [
                {"phase": "00/sft", "rows": 4096, "batches": 64, "tokens": 250_000, "epochs": 1},
                {"phase": "01/sft"},
            ],
            "done": ["00/sft"],
            "to_do": ["01/sft"],
        },
        page,
    )
    text = read(page)
    for words in ("runs/[bold]x", "train 4,096, test 1,000", "dropped short 3", "1,234,567 parameters",
                  "every parameter", "train workers 2, device cpu", "3.0 MiB", "250,000",
                  "phases done 1, to do 1, next 01/sft"):  # fmt: skip
        assert words in text
    assert "threads" not in text
    bare = paper()
    terminal.print_plan({}, bare)
    assert read(bare).split() == ["Plan"]


def test_tables_are_apart_where_numbers_cannot_be_compared() -> None:
    page = paper()
    beams = ROW | {
        "decode": "beams",
        "embedder": None,
        "iteration": 0,
        "policy": "00/sft",
        "seconds": 12.34,
        "overlap": 1.5,
    }
    popular = {
        "kind": "baseline",
        "model": "Popular",
        "split": "test",
        "decode": "greedy",
        "embedder": "title",
        "N": 1000,
    }
    terminal.print_iteration_table([popular, ROW, beams], console=page)
    text = read(page)
    assert text.count("test, greedy, embedder title, N = 1,000") == 1
    assert text.count("test, beams, N = 1,000") == 1
    line = next(line for line in text.splitlines() if "iteration 1" in line)
    assert line.split() == ["iteration", "1", "(01/prefer)", "0.035", "0.021", "0.190", "–", "0.020", "–", "–"]
    line = next(line for line in text.splitlines() if "BIGRec" in line)
    assert line.split()[-3:] == ["12.3", "1.50", "×"]
    assert next(line for line in text.splitlines() if "Popular" in line).split()[1:] == ["–"] * 7


def test_the_first_policy_is_bigrec_unless_the_row_says_otherwise() -> None:
    row = {"kind": "evaluation", "iteration": 0, "policy": "00/sft"}
    assert rows.label(row) == "BIGRec (00/sft)"
    assert rows.label(row | {"model": "first SFT"}) == "first SFT (00/sft)"
    assert rows.label(row | {"policy": "00/base"}) == "not tuned here (00/base)"
    assert rows.label(row | {"policy": "base", "model": "tuned, 01/prefer"}) == "tuned, 01/prefer (base)"


def test_k_is_five_where_computed_else_the_largest() -> None:
    assert rows.default_k([{"HR@1": 0, "HR@5": 0, "HR@10": 0}]) == 5
    assert rows.default_k([{"HR@1": 0, "HR@20": 0}]) == 20
    page = paper()
    terminal.print_iteration_table([ROW], k=1, console=page)
    assert "HR@1" in read(page) and "HR@5" not in read(page)


@pytest.mark.parametrize("tty", [False, True])
def test_titles_print_as_they_are(tty: bool) -> None:
    page = paper(tty=tty)
    sample = {"history": ["[bold]A", ":smile:", "[/]"], "chosen": "[link=x]B[/link]", "rejected": ["\x1b[31mred\nline"]}
    terminal.print_samples([sample], console=page)
    text = read(page)
    for title in ("[bold]A", ":smile:", "[/]", "[link=x]B[/link]", r"\x1b[31mred\nline"):
        assert title in text
    terminal.log("01/[red]x", "[/nothing]", page)
    assert "01/[red]x" in read(page) and "[/nothing]" in read(page)


@given(st.text())
def test_any_text_stays_on_its_line_without_control_characters(text: str) -> None:
    shown = terminal.plain(text).plain
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)
    if text.isprintable():
        assert shown == text


def test_numbers_for_people() -> None:
    assert [rows.number(x) for x in (None, float("nan"), 1234567, 0.12345, "x", True)] == [
        "–", "–", "1,234,567", "0.123", "x", "True"
    ]  # fmt: skip
    assert [terminal.size(x) for x in (None, 0, 1023, 1024, 5 * 1024**3, 1024**4)] == [
        "–", "0 B", "1023 B", "1.0 KiB", "5.0 GiB", "1.0 TiB"
    ]  # fmt: skip


def test_a_log_gets_few_plain_lines() -> None:
    now = 0.0
    page = paper()
    with terminal.LaneProgress(every=5.0, console=page, clock=lambda: now) as progress:
        progress.start("trainers", "01/sft", 100)
        progress.start("generators", "01/negatives", 8, "parts")
        for step in range(1, 101):  # 0.25 s a step: 25 s, so a line at 5, 10, 15, 20 and 25 s
            now = step * 0.25
            progress.update("01/sft", step, "loss 1.23")
        progress.finish("01/sft", "loss 1.20")
        progress.finish("01/negatives")
    lines = read(page).splitlines()
    assert "\x1b" not in read(page)
    trainers = [line for line in lines if "01/sft" in line]
    assert len(trainers) == 1 + 5 + 1
    assert trainers[2].endswith("40/100 steps, loss 1.23, 15 s left")  # 60 steps of 0.25 s
    assert trainers[-1].endswith("done: 100 steps in 25.0 s, loss 1.20")
    assert lines[-1].endswith("generators  done: 8 parts in 25.0 s")


def test_a_phase_says_which_of_how_many_it_is() -> None:
    for tty in (False, True):
        page = paper(tty=tty)
        with terminal.LaneProgress(console=page, phases=["00/sft", "01/sft", "01/prefer"]) as progress:
            progress.start("trainers", "01/sft", 10)
            progress.update("01/sft", 4)
        assert "steps, phase 2 of 3" in read(page)


def test_the_table_is_explained_under_it() -> None:
    page = paper(144)
    popular = {"kind": "baseline", "model": "Popular", "split": "test", "N": 1000, "HR@5": 0.1}
    terminal.print_iteration_table([popular, ROW | {"iteration": 0, "policy": "00/sft"}, ROW], console=page)
    told = " ".join(read(page).split())
    columns, kinds = told[told.index("More is better: ") :].split(" Popular: ")
    assert columns.startswith("More is better: HR (next title in the list), NDCG (weighted by its place), DivRatio (")
    assert columns.endswith("Less is better: ORRatio (share of the three top titles), MGU (genre bias).")
    assert kinds.startswith(
        "the same titles for everybody. BIGRec: tuned on histories alone. Iteration t: after t rounds"
    )
    assert kinds.endswith("HR@5 is known to ± 0.013 (95 %, binomial, N = 1,000): smaller differences may be noise.")
    bare = paper()
    terminal.print_iteration_table([ROW | {"iteration": 0, "policy": "base"}], console=bare)
    assert "Popular" not in read(bare) and "BIGRec" not in read(bare) and "Iteration t" not in read(bare)


def test_an_evaluation_is_told_in_a_line() -> None:
    told = (
        "test, greedy, embedder title, N = 1,000: HR@5 0.035, NDCG@5 0.021, DivRatio@5 0.190, ORRatio@5 –, MGU@5 0.020"
    )
    assert rows.evaluated(ROW) == told


def test_a_step_that_takes_long_gets_few_lines() -> None:
    now, page = 0.0, paper()
    with terminal.LaneProgress(every=5.0, console=page, clock=lambda: now) as progress:
        progress.start("trainers", "01/sft", 2)
        for second in range(1, 126):  # heartbeats of a step that ends after 120 s
            now = float(second)
            progress.update("01/sft", second // 120)
    # At 5, 35, 65 and 95 s, and once the step is done.
    assert len(read(page).splitlines()) == 1 + 4 + 1


def test_the_time_left_of_a_phase_that_goes_on_is_by_its_own_pace() -> None:
    now, page = 0.0, paper()
    with terminal.LaneProgress(every=1.0, console=page, clock=lambda: now) as progress:
        progress.start("trainers", "01/sft", 100)
        for seconds, step in ((50.0, 0), (60.0, 40), (70.0, 45), (80.0, 100)):
            now = seconds
            progress.update("01/sft", step)
    lines = [line.split("trainers    ")[1] for line in read(page).splitlines()]
    # The steps before the checkpoint are not counted: 5 steps took 10 s, and 55 are left: 110 s.
    assert lines == ["starts: 100 steps", "0/100 steps", "40/100 steps", "45/100 steps, 2 min left", "100/100 steps"]


def test_a_terminal_gets_one_bar_per_lane() -> None:
    page = paper(tty=True)
    with terminal.LaneProgress(console=page) as progress:
        progress.start("trainers", "01/[b]sft", 10)
        progress.update("01/[b]sft", 4, "loss [1]")
        progress.start("generators", "01/negatives", 2, "parts")
        progress.finish("01/negatives")
    text = read(page)
    for words in ("trainers", "generators", "01/[b]sft", "4/10", "loss [1]", "done: 2 parts"):
        assert words in text


def test_two_phases_share_a_lane() -> None:
    page = paper()
    with terminal.LaneProgress(console=page) as progress:
        progress.start("generators", "01/evaluate", 5, "parts")
        progress.start("generators", "02/negatives", 2, "parts")
        progress.finish("01/evaluate")
        progress.update("01/evaluate", 5)  # late, and of no effect
        progress.finish("02/negatives")
    assert [line.split("  ")[1].strip() for line in read(page).splitlines()] == [
        "01/evaluate",
        "02/negatives",
        "01/evaluate",
        "02/negatives",
    ]
