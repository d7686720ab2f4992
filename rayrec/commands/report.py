"""Rebuild report.html of a run from its files.

rayrec report runs/NAME
"""

from __future__ import annotations

from rayrec.report import __main__


def main(args: list[str] | None = None) -> None:
    """Read a command line and rebuild the report that it names."""
    __main__.main(args, "rayrec report")
