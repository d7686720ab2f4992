"""Measure what is recommended, over time and by policy, and compare it with limits.

rayrec watch lists.parquet --catalogue runs/NAME/catalogue.parquet
"""

from __future__ import annotations

from rayrec.watch import __main__


def main(args: list[str] | None = None) -> None:
    """Read a command line and measure."""
    __main__.main(args, "rayrec watch")
