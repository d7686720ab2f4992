"""``python -m rayrec.report runs/NAME`` rebuilds the report of a run from its files."""

import sys
from pathlib import Path

from rayrec.report.build import build_report


def main(folder: Path) -> None:
    """Rebuild report.html of a run from its files.

    Args:
        folder: Run folder, as in runs/NAME.
    """
    try:
        print(build_report(folder))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    import tyro

    tyro.cli(tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(main), prog="python -m rayrec.report")
