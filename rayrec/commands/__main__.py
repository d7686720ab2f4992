"""``rayrec NAME ...``: the console script; ``python -m rayrec.commands`` is the same."""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
import sys
import textwrap
from pathlib import Path

from rayrec import commands
from rayrec.flags import width


def names() -> list[str]:
    """The commands, by their files; `sprec` first."""
    found = {one.name for one in pkgutil.iter_modules(commands.__path__)} - {"__main__"}
    return sorted(found, key=lambda name: (name != "sprec", name))


def main(words: list[str] | None = None) -> None:
    """Run the command that the first word names; exit with 2 where there is none."""
    name, *args = (sys.argv[1:] if words is None else words) or ["--help"]
    known = names()
    if name in ("-h", "--help"):
        print(_about(known))
    elif name in known:
        sys.exit(importlib.import_module(f"rayrec.commands.{name}").main(args))
    else:
        near = difflib.get_close_matches(name, known, 1)
        remedy = f"Take {near[0]}" if near else f"Take one of {', '.join(known)}"
        print(f"error: found the command {name!r}. {remedy}; rayrec --help says what each does.", file=sys.stderr)
        sys.exit(2)


def _about(known: list[str]) -> str:
    lines = []
    for name in known:
        text = ast.parse(Path(commands.__path__[0], f"{name}.py").read_text("utf-8"))  # some take seconds to import
        about = (ast.get_docstring(text) or "").splitlines()[0]
        lines += textwrap.wrap(about, width(), initial_indent=f"  {name:<10} ", subsequent_indent=" " * 13)
    return "\n".join(["usage: rayrec COMMAND ...; rayrec COMMAND --help lists its flags", "", *lines])


if __name__ == "__main__":
    main()
