"""``python -m rayrec.report runs/NAME`` rebuilds the report of a run from its files; so does `rayrec report`."""

from __future__ import annotations

import sys
from pathlib import Path

from rayrec.report.build import build_report
from rayrec.runs.names import check_run


def rebuild(folder: Path) -> None:
    """Rebuild report.html of a run from its files.

    Args:
        folder: Run folder, as in runs/NAME.
    """
    try:
        check_run(folder)
        print(build_report(folder))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def main(args: list[str] | None = None, prog: str = "python -m rayrec.report") -> None:
    """Read a command line and rebuild the report that it names."""
    import tyro

    tyro.cli(tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(rebuild), prog=prog, args=args)


if __name__ == "__main__":
    main()
