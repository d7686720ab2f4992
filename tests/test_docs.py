"""The documents: their commands are understood, their links lead somewhere, and their names exist.

A shell block says in its first line whether this test runs it (``sh run``) or why it does not (:data:`NOT_RUN`). The
flags of commands that are not run are still parsed by the job that they call.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

from rayrec import flags
from rayrec.commands import baselines as commands_baselines
from rayrec.commands import compare, evaluate
from rayrec.commands.__main__ import names as command_names
from rayrec.config import BaselinesConfig, Config
from rayrec.driver import baselines, checks
from rayrec.methods import parse
from rayrec.recommend.batch import RecommendConfig
from rayrec.serving.settings import ServeConfig
from rayrec.watch.__main__ import WatchConfig
from tests.faults.__main__ import kinds_of, options
from tests.faults.kinds import KINDS

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "cluster" / "README.md"]
#: Why a shell block is not run here.
NOT_RUN = {
    "minutes": "it trains models, measures, or runs all tests",
    "data": "it reads data, a model or a run of the user",
    "cluster": "it needs nodes, or an account on a cluster",
}
#: Languages of other blocks: Python, output and file trees, and the import table of docs/design.md.
OTHER_BLOCKS = ("python", "text", "imports")
#: Commands of other tools, whose flags are their own; the files that they name must exist.
TOOLS = ("curl", "docker", "kubectl", "sed", "sbatch", "tail", "cd", "export", "source", "python3.11", ".venv/bin/pip")
#: The settings of commands that are read as they are.
KINDS_OF = {"recommend": RecommendConfig, "serve": ServeConfig, "watch": WatchConfig}
#: Flags in prose that belong to none of our commands.
FOREIGN_FLAGS = {"--logdir", "--metrics-export-port"}


class Block(NamedTuple):
    """A fenced block: its language, the words after that, and its text."""

    where: str
    language: str
    note: str
    text: str


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks of all documents, in some languages or all."""
    found = []
    for path in FILES:
        for match in re.finditer(r"^```(\w*) ?(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE):
            where = f"{path.relative_to(ROOT)}:{path.read_text()[: match.start()].count(chr(10)) + 1}"
            found.append(Block(where, *match.groups()))
    return [block for block in found if not languages or block.language in languages]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words; `…` stands for what the text before it says."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line.replace("…", " "), posix=True, punctuation_chars=";&")
        words.whitespace_split = True
        for separator, some in groupby(words, key=lambda word: set(word) <= set(";&")):
            if not separator:
                yield list(some)


def named(block: Block) -> str:
    return block.where


def test_every_block_has_a_language_and_every_shell_block_a_class() -> None:
    for block in blocks():
        assert block.language in ("sh", *OTHER_BLOCKS), block.where
        assert block.note in (("run", *NOT_RUN) if block.language == "sh" else ("",)), block.where
    assert {block.note for block in blocks("sh")} == {"run", *NOT_RUN}


@pytest.mark.parametrize("block", [block for block in blocks("sh") if block.note == "run"], ids=named)
def test_quick_commands_run(block: Block, tmp_path: Path) -> None:
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    text = f"set -euo pipefail\n{block.text.replace('/tmp/runs', str(tmp_path))}"
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own modules
@pytest.mark.parametrize("block", blocks("sh"), ids=named)
def test_commands_are_understood(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "jobs")
    for words in commands(block.text):
        understand([word for word in words if not re.match(r"[A-Z_]+=", word)])


def understand(words: list[str]) -> None:
    """Parse a command by the parser of the program that it calls."""
    if not words:
        return
    if Path(words[0]).name == "python":
        python(words[1:])
    elif words[0] == "make":
        assert made(*words[1:])
    elif words[0] == "rayrec":
        rayrec(words[1:])
    elif words[0] == "ray":
        ray(words[1:])
    else:
        assert words[0] in TOOLS, words
        for word in words:
            if "rayrec.yaml" not in word and re.match(r"cluster/[\w.-]+$", word):
                assert (ROOT / word).exists(), word
        if "ray" in words:  # in a pod
            ray(words[words.index("ray") + 1 :])


def python(words: list[str]) -> None:
    """Parse the flags of a job, or of a module that is run as one."""
    program, args = (words[1], words[2:]) if words[0] == "-m" else (words[0].removeprefix("/opt/rayrec/"), words[1:])
    command = re.fullmatch(r"jobs/(\w+)\.py", program)
    if {"-h", "--help", "--help-all"} & set(args):
        assert (ROOT / program).exists(), program
    elif command and command[1] in command_names():
        rayrec([command[1], *args])
    elif program == "rayrec.watch":
        tyro.cli(WatchConfig, args=args)
    elif program == "jobs/bench.py":
        importlib.import_module("bench").options().parse_args(args)
    elif program in ("jobs/check_gpu.py", "jobs/theory.py"):
        importlib.import_module(Path(program).stem).options().parse_args(args)
    elif program == "tests.faults":
        options().parse_args(args)
    else:
        assert program in ("rayrec.report", "pytest"), words


def rayrec(words: list[str]) -> None:
    """Parse a command of the console script."""
    name, *args = words
    if {"-h", "--help", "--help-all"} & set(args):
        return
    if name == "sprec":
        checks.resolve(parse("", args))
    elif name == "evaluate":
        evaluate.check_words(args)
        given = ("--model" if arg == "--policy" else arg for arg in args)
        evaluate.check_untrained(parse("", ["--method", "zero-shot", *given]))
    elif name == "compare":
        given, rest = compare.options().parse_known_args(args)
        rest, rows = compare.settle(given, rest)
        compare.check(given, rows, rest)
    elif name == "baselines":
        config = commands_baselines.read(args)
        commands_baselines.check_read(config)
        baselines.check(config)
    elif name in KINDS_OF:
        flags.read(KINDS_OF[name], args)
    else:
        assert name == "report" and len(args) == 1, words


def ray(words: list[str]) -> None:
    """Parse a command of Ray, and ours that it is to start."""
    from ray.scripts.scripts import cli

    own = words.index("--") if "--" in words else len(words)
    command, args = cli, words[:own]
    while args and args[0] in getattr(command, "commands", {}):
        command, args = command.commands[args[0]], args[1:]
    assert command is not cli, words
    if command.name == "submit":
        assert args[::2] == ["--address", "--working-dir"][: len(args[::2])], words
    else:
        command.make_context(command.name, list(args))
    if command.name == "exec":
        inner = [one for one in commands(args[-1]) if "jobs/sprec.py" in one]
        understand([word for word in inner[0] if not re.match(r"[A-Z_]+=", word)])
    understand(words[own + 1 :])


def made(*words: str) -> list[list[str]]:
    """The commands that `make` would run where no model was fetched yet, as words."""
    env = os.environ | {"HOME": "/nowhere"}
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return [shlex.split(line, comments=True) for line in done.stdout.replace("\\\n", "").splitlines()]


def test_make_faults_strikes_every_kind_and_a_number_if_asked() -> None:
    def struck(*words: str) -> list[str]:
        (line,) = [line for line in made("faults", *words) if "tests.faults" in line]
        return kinds_of(options().parse_args(line[line.index("tests.faults") + 1 :]))

    assert set(struck()) == set(KINDS)
    assert len(struck("FAULTS=2")) == 2


def known_flags() -> set[str]:
    """The flags of our commands, and those of `ray start`."""
    from ray.scripts.scripts import start

    found = {"--preset", "--method", "--config", "--policy", "--help", "--help-all"}
    found |= {name for p in start.params for name in p.opts}
    for config in (Config(), BaselinesConfig(), RecommendConfig(""), ServeConfig(""), WatchConfig((), "")):
        for part in fields(config):
            group = getattr(config, part.name)
            for name in [one.name for one in fields(group)] if hasattr(group, "__dataclass_fields__") else [part.name]:
                found |= {f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"}
    for parser in (options(), compare.options(), importlib.import_module("bench").options()):
        found |= {name for action in parser._actions for name in action.option_strings}
    return found


def test_flags_in_prose_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "jobs")
    known = known_flags() | FOREIGN_FLAGS
    for path in FILES:
        spans = " ".join(re.findall(r"`([^`\n]+)`", prose(path)))
        spans = re.sub(r"\bray \w+.*?\.yaml", "", spans)  # commands of other tools with flags of their own
        assert [flag for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", spans) if flag not in known] == [], (
            path.name
        )


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"\w+://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name}: {target}"
        headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE) if anchor else []
        assert not anchor or anchor in map(slug, headings), f"{path.name}: {target}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_modules_that_are_named_exist(path: Path) -> None:
    """Of `my_…` files the reader writes the content."""
    text = path.read_text()
    for name in re.findall(r"(?<![\w/.~$-])(?:rayrec|jobs|tests|docs|cluster)/[\w./*-]*\w", text):
        assert list(ROOT.glob(name)) or Path(name).name.startswith(("my_", "test_my_")), f"{path.name}: {name}"
    for name in re.findall(r"`(rayrec(?:\.\w+)+)`", text):
        assert attribute(name) is not None, f"{path.name}: {name}"


def test_the_tree_of_rooms_names_files() -> None:
    tree = next(block.text for block in blocks("text") if block.where.startswith("docs/design.md"))
    rooms = re.findall(r"(\w+)/ +((?:[a-z_]+/?, )+[a-z_]+/?)", tree)
    assert len(rooms) > 8
    for room, names in rooms:
        for name in names.split(", "):
            assert list((ROOT / "rayrec" / room).glob(f"{name.strip('/')}*")), f"{room}/{name}"


def attribute(name: str) -> Any:
    """The module, or the content of a module, that has a dotted name; None if there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return getattr(attribute(module), last, None) if module else None


@pytest.mark.parametrize("block", blocks("python"), ids=named)
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if not module.startswith("rayrec"):
                assert importlib.util.find_spec(module) is not None, module
                continue
            for alias in node.names:
                assert attribute(f"{module}.{alias.name}") is not None, f"{module}.{alias.name}"


@pytest.mark.parametrize("block", [block for block in blocks("python") if "\ndef test_" in block.text], ids=named)
def test_examples_pass_their_own_tests(block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An example adds a row to a dict of the library, and tests what it added."""
    for module, name in re.findall(r"^from ([\w.]+) import .*\b([A-Z]{4,})\b", block.text, re.MULTILINE):
        rows = attribute(f"{module}.{name}")
        monkeypatch.setattr(f"{module}.{name}", rows | {})
    made = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", made)  # where dataclasses look for it
    exec(compile(block.text, block.where, "exec"), made.__dict__)
    tests = [value for name, value in vars(made).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test(*([tmp_path] if inspect.signature(test).parameters else []))


def test_the_loop_of_the_readme_calls_what_the_lanes_have() -> None:
    from rayrec.generation.lane import GenerateLane
    from rayrec.training.lane import TrainLane

    loop = next(block.text for block in blocks("python") if block.where.startswith("README.md"))
    calls = re.findall(r"(trainers|generators)\.(\w+)\(", loop)
    assert {name for lane, name in calls if lane == "trainers"} <= {*dir(TrainLane)}
    assert {name for lane, name in calls if lane == "generators"} <= {*dir(GenerateLane)}
    assert {name for _, name in calls} == {"sft", "evaluate", "negatives", "prefer"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900
