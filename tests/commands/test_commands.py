"""The console script, its help, and flags that are nearly right."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from rayrec import flags
from rayrec.commands import __main__
from rayrec.config import BaselinesConfig, Config
from rayrec.methods import FIRST, parse
from rayrec.recommend.batch import RecommendConfig

ROOT = Path(__file__).parents[2]


def test_the_console_script_lists_and_calls_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["rayrec"]
    module, _, name = script.partition(":")
    assert getattr(importlib.import_module(module), name) is __main__.main
    known = __main__.names()
    assert known[0] == "sprec" and {"compare", "baselines", "evaluate", "recommend", "report"} < {*known}
    __main__.main([])
    shown = capsys.readouterr().out
    assert all(f"  {one} " in shown for one in known)
    for one in known:
        assert callable(importlib.import_module(f"rayrec.commands.{one}").main)


def test_a_command_that_does_not_exist_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(["recomend"])
    assert ended.value.code == 2 and "Take recommend;" in capsys.readouterr().err


def test_the_console_script_runs_a_command(tmp_path: Path) -> None:
    """Other tests run the jobs' scripts."""
    line = ["-m", "rayrec.commands", "sprec", "--preset", "toy", "--runs", str(tmp_path), "--dry-run"]
    done = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "synthetic-tiny-dpo-self_play-seed0" in done.stdout and not list(tmp_path.iterdir())


def test_help_shows_a_dozen_flags_by_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("What it does.", ["--preset", "toy", "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and shown.startswith("What it does.")
    heads = [line.split()[0].rstrip(",") for line in shown.splitlines() if line.startswith("  --")]
    wanted = ["--preset", "--method", "--config"]
    wanted += [f"--{name.replace('_', '-')}" for names in FIRST.values() for name in names]
    assert heads == wanted and 12 <= len(heads) <= 18
    assert [line for line in shown.splitlines() if line in FIRST] == [*FIRST]
    assert "(default: 2)" in shown  # the preset's iterations
    assert "--help-all shows all" in shown and max(map(len, shown.splitlines())) <= 120
    for line in shown.splitlines():
        assert "  " not in line.strip() or line.startswith("  --"), line


@pytest.mark.parametrize("name", ["", *__main__.names()])
def test_help_fits_a_terminal_of_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with suppress(SystemExit):
        __main__.main([name, "--help"] if name else [])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5 and not [line for line in lines if len(line) > 80 and not line.startswith(" " * 10)]


def test_long_commands_of_a_help_go_on_in_the_next_line() -> None:
    text = f"{'A word ' * 12}self-play.\n\n    run --data DIR --name {'n' * 40} --top-k 5 --out lists.parquet  # a note"
    assert flags.wrapped(text, 80).splitlines() == [
        "A word A word A word A word A word A word A word A word A word A word A word A",
        "word self-play.",
        "",
        "    # a note",
        f"    run --data DIR --name {'n' * 40} --top-k 5 \\",
        "        --out lists.parquet",
    ]


@pytest.mark.parametrize(
    ("kind", "word", "meant"),
    [
        (Config, "--learning-rate", "--lr"),
        (Config, "--learning_rate=1e-4", "--lr"),
        (Config, "--batch-size", "--batch"),
        (Config, "--num-negative", "--num-negatives"),
        (Config, "--dataset", "--data"),
        (Config, "--iteration", "--iterations"),
        (Config, "--no-shares", "--no-share"),
        (Config, "--methods", "--method"),
        (BaselinesConfig, "--learning-rate", "--lr"),
        (BaselinesConfig, "--model", "--models"),
        (RecommendConfig, "--topk", "--top-k"),
        (RecommendConfig, "--history", "--histories"),
    ],
)
def test_a_flag_that_is_nearly_right_names_the_right_one(
    kind: type, word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("", [word]) if kind is Config else flags.read(kind, [word])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith(
        f"error: there is no flag {word.partition('=')[0].replace('_', '-')}"
    )
    assert f"Take {meant}" in told and len(told.splitlines()) == 1


def test_a_flag_like_no_other_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("", ["--xyzzy", "1"])
    assert capsys.readouterr().err == "error: there is no flag --xyzzy. --help-all lists all flags.\n"


def test_synonyms_lead_to_flags_that_exist() -> None:
    assert {f"--{name}" for name in flags.SYNONYMS} <= {*flags.flags_of(Config), "--help-all"}
    for right, others in flags.SYNONYMS.items():
        assert not {f"--{one}" for one in others.split()} & {*flags.flags_of(Config)}, right


@pytest.mark.parametrize("kind", [Config, BaselinesConfig, RecommendConfig])
def test_the_whole_help_has_every_flag_in_whole_lines(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flags.read(kind, ["--help-all"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    shown = {word.rstrip(",") for line in lines if line.startswith("  --") for word in line.split()[:2]}
    assert shown >= {*flags.flags_of(kind)}


def test_every_setting_of_the_short_help_has_a_text() -> None:
    texts = flags.documents(Config)
    assert all(texts[f"--{name.replace('_', '-')}"] for names in FIRST.values() for name in names)
