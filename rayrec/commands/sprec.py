"""SPRec: tune a language-model recommender by self-play, from interaction logs to a policy and a report.

    rayrec sprec                                     # embedded data, tiny model, this machine
    rayrec sprec --data DIR --model tiny --iterations 3
    ray job submit -- rayrec sprec --preset paper --data /shared/DIR --runs /shared/runs

The same command again goes on where the run stopped. In a checkout `python jobs/sprec.py` is the same.
"""

from __future__ import annotations

import sys

from rayrec import signals
from rayrec.config import Config


def read(args: list[str] | None = None) -> Config:
    """Return the settings of a command line, by default this process's."""
    from rayrec.generation import ENGINES
    from rayrec.methods import parse  # now, so that rows which a script added to the tables count

    return parse(__doc__ or "", args, engines=ENGINES, prog="rayrec sprec")


def do(config: Config) -> None:
    """Do the run, or what is left of it, and end the process with its exit status if it fails."""
    from rayrec.driver.session import ending, run  # heavy, and not needed for --help

    with ending():
        run(config)


def main(args: list[str] | None = None) -> None:
    """Read a command line and do its run."""
    signals.catch()
    try:
        config = read(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    do(config)
