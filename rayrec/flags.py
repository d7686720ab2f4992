"""How a command line is read: the flags that most people need in ``--help``, all of them in ``--help-all``, and for a
flag that does not exist the one that was meant."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, NoReturn, TypeVar

import tyro

from rayrec.fields import flag

C = TypeVar("C")
#: The column of the help in which texts begin.
_BESIDE = 30

#: Names that other programs give to a flag.
SYNONYMS = {
    "data": "dataset data-path data-dir data-folder input dataset-name",
    "model": "model-name model-path model-name-or-path base-model pretrained policy",
    "runs": "output-dir output out out-dir save-dir run-dir logdir",
    "name": "run-name experiment exp-name",
    "lr": "learning-rate learningrate lr-max peak-lr",
    "first-lr": "sft-lr sft-learning-rate first-learning-rate",
    "batch": "batch-size train-batch-size global-batch-size bs",
    "micro-batch": "micro-batch-size per-device-train-batch-size gradient-accumulation-steps",
    "first-epochs": "epochs num-epochs num-train-epochs sft-epochs",
    "iterations": "num-iterations iters rounds turns self-play-iterations",
    "num-negatives": "k negatives-per-row neg-num",
    "objective": "loss loss-type",
    "top-k": "topk ks",
    "beam-width": "num-beams beams",
    "lora-rank": "rank lora-r",
    "max-length": "max-seq-length max-seq-len max-len cutoff-len context-length",
    "warmup": "warmup-steps warmup-ratio",
    "schedule": "lr-scheduler scheduler lr-scheduler-type",
    "clip": "max-grad-norm gradient-clipping",
    "dtype": "precision bf16 fp16",
    "train-workers": "workers num-workers gpus num-gpus nproc",
    "generators": "num-generators engines",
    "device": "gpu cuda cpu",
    "on-existing": "resume overwrite force restart",
    "track": "wandb mlflow report-to tracker",
    "columns": "column user-col item-col",
    "engine": "backend vllm",
    "dry-run": "plan check",
    "help-all": "help-full full-help",
}


def read(
    kind: type[C],
    args: Sequence[str],
    *,
    default: Any = None,
    description: str = "",
    prog: str | None = None,
    first: Mapping[str, Sequence[str]] | None = None,
    own: Mapping[str, str] | None = None,
) -> C:
    """Return the settings of a command line; exits after ``--help``, and with 2 where a flag is unknown or wrong.

    Args:
        kind: a dataclass of settings, or of groups of them.
        default: an instance with the defaults; otherwise those of ``kind``.
        first: the settings that ``--help`` shows, by a heading of their purpose; without them it shows all.
        own: further flags, which the caller has read itself, with what they take, and what they do.
    """
    known, own = flags_of(kind), own or {}
    others = {head.split()[0]: text for head, text in own.items()} | {"--help-all": "lists all flags"}
    for word in args:  # tyro would tell the nearest spelling, and not that a learning rate is --lr
        name = f"--{word[2:].partition('=')[0].replace('_', '-')}"
        if word.startswith("--") and len(word) > 2 and name not in (*known, *others, "--help"):
            _refuse(name, dict.fromkeys(known, "") | documents(kind) | others)
    if {"-h", "--help", "--help-all"} & {*args}:
        print(_help(kind, default, description, None if "--help-all" in args else first, own))
        sys.exit(0)
    given: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=args, description=description, prog=prog, **given)


def flags_of(kind: type) -> list[str]:
    """The flags of all settings of ``kind``, those that switch one off too."""
    found = []
    for one in _settings(kind):
        found += [flag(one.name), flag(f"no-{one.name}")] if one.kind is bool else [flag(one.name)]
    return found


def documents(kind: type) -> dict[str, str]:
    """Return the descriptions of the settings of ``kind``, by flag."""
    return {flag(one.name): one.text for one in _settings(kind)}


class Setting(NamedTuple):
    """A setting as the help shows it."""

    name: str
    kind: Any
    """The type of its values, or of each of ``several``."""
    several: bool
    text: str
    purpose: str
    """The first sentence about its group."""

    @property
    def head(self) -> str:
        """Its flag and what it takes."""
        if self.kind is bool:
            return f"{flag(self.name)}, {flag(f'no-{self.name}')}"
        kinds = {int: "N", float: "X", str: "TEXT"}
        choices = typing.get_args(self.kind) if typing.get_origin(self.kind) is typing.Literal else ()
        word = f"{{{', '.join(map(str, choices))}}}" if choices else kinds.get(self.kind, "VALUE")
        return f"{flag(self.name)} {word}{' ...' if self.several else ''}"

    def about(self, value: Any, whole: bool) -> str:
        """Its text, of which the first sentence and the default are the short form, and its value where it has one."""
        sentences = self.text.split(". ")
        kept = sentences if whole else [one for i, one in enumerate(sentences) if not i or one.startswith("Default")]
        text = f"{'. '.join(kept).rstrip('.')}." if self.text else ""
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        unset = value is None or value is False or value == ()
        return text if unset else f"{text} (default: {shown})".strip()


def _settings(kind: type, purpose: str = "") -> Iterator[Setting]:
    """Every setting of a group, or of a dataclass of groups."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), _texts(kind)
    for one in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType], it is a dataclass
        marks = getattr(hints[one.name], "__metadata__", ())
        bare = _bare(hints[one.name])
        if dataclasses.is_dataclass(bare):
            yield from _settings(typing.cast(type, bare), " ".join((bare.__doc__ or "").split()).split(". ")[0])
            continue
        for mark in marks:
            if factory := getattr(mark, "constructor_factory", None):
                bare = _bare(factory())
        several = typing.get_origin(bare) is tuple
        bare = _bare(typing.get_args(bare)[0]) if several else bare
        told = [mark.help for mark in marks if isinstance(getattr(mark, "help", None), str)]
        text = " ".join([*told, texts.get(one.name, "")])
        yield Setting(one.name, bare, several, " ".join(text.split()), purpose)


def _bare(hint: Any) -> Any:
    """A type without its marks, and without None."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    return hint


@cache
def _texts(kind: type) -> dict[str, str]:
    """The text under each setting in the source of a class and of those that it is made of."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        except (OSError, TypeError):  # made at run time, as the losses' settings are
            continue
        body = typing.cast(ast.ClassDef, tree).body
        for above, below in itertools.pairwise(body):
            named = isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name)
            if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[above.target.id] = str(below.value.value)  # pyright: ignore[reportAttributeAccessIssue]
    return found


def _refuse(name: str, known: Mapping[str, str]) -> NoReturn:
    """End the process with 2, and name the flag that was meant."""
    word = name[2:].removeprefix("no-")
    meant = [flag(right) for right, others in SYNONYMS.items() if word in others.split() and flag(right) in known]
    meant = meant or difflib.get_close_matches(name, known, 3, 0.7)
    told = [f"{one} ({known[one].split('. ')[0].rstrip('.')})" if known[one] else one for one in meant]
    remedy = f"Take {' or '.join(told)}." if told else "--help-all lists all flags."
    print(f"error: there is no flag {name}. {remedy}", file=sys.stderr)
    sys.exit(2)


def _help(
    kind: type,
    default: Any,
    description: str,
    first: Mapping[str, Sequence[str]] | None,
    own: Mapping[str, str],
) -> str:
    """The text of ``--help``, or without ``first`` of ``--help-all``."""
    every = list(_settings(kind))
    values, by_name = _values(kind if default is None else default), {one.name: one for one in every}
    rows = {"Start from": list(own.items())} if own else {}
    for one in every if first is None else ():
        rows.setdefault(one.purpose, []).append((one.head, one.about(values.get(one.name), True)))
    for heading, names in (first or {}).items():
        rows[heading] = [(by_name[n].head, by_name[n].about(values.get(n), False)) for n in names]
    across = width()
    lines = [wrapped(description.rstrip(), across)]
    for heading, some in rows.items():
        lines += ["", *textwrap.wrap(heading.rstrip("."), across)]
        for head, text in some:
            lines += _row(head, text, across)
    more = f"--help-all shows all {len(every) + len(own)} settings." if first else ""
    return "\n".join([*lines, "", more] if more else lines)


def width() -> int:
    """Characters of a line of help."""
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))


def wrapped(text: str, across: int) -> str:
    """Fit paragraphs and their indented commands to lines of ``across`` characters; long commands go on after a \\."""
    made: list[str] = []
    for block in text.split("\n\n"):
        if not block.startswith(" "):
            made.append(textwrap.fill(block, across, break_on_hyphens=False))
            continue
        lines: list[str] = []
        for line in block.splitlines():
            command, sharp, note = line.partition("  # ")
            if len(line) > across and sharp:  # the note goes above
                lines += textwrap.wrap(f"    # {note}", across, subsequent_indent="    # ")
                line = command.rstrip()
            fit = partial(textwrap.wrap, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False)
            whole = re.sub(r"(--\S+) (?!-)", "\\1\0", line)  # a flag stays with its value
            lines += [" \\\n".join(fit(whole, across - 2 if len(line) > across else across)).replace("\0", " ")]
        made.append("\n".join(lines))
    return "\n\n".join(made)


def _row(head: str, text: str, across: int) -> list[str]:
    """Lines of a flag: its text stands beside it where there is room, else below."""
    wrap, indent = partial(textwrap.wrap, width=across, break_on_hyphens=False), " " * _BESIDE
    if text and len(head) + 4 <= _BESIDE:
        return wrap(text, initial_indent=f"  {head:<{_BESIDE - 2}}", subsequent_indent=indent)
    heads = wrap(head, initial_indent="  ", subsequent_indent=" " * 6)
    return heads + wrap(text, initial_indent=indent, subsequent_indent=indent)


def _values(config: Any) -> dict[str, Any]:
    """The settings of an instance, or the defaults of a class, those of its groups among them."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(config):
        if not isinstance(config, type):
            value = getattr(config, one.name)
        elif one.default_factory is not dataclasses.MISSING:
            value = one.default_factory()
        else:
            value = None if one.default is dataclasses.MISSING else one.default
        found |= _values(value) if dataclasses.is_dataclass(value) else {one.name: value}
    return found
