"""Train and rank sequential recommenders and Popular on the rows of any source.

    rayrec baselines --data DIR                                              # the rows of jobs/sprec.py's split
    rayrec baselines --data DIR --models sasrec gru4rec caser --split leave_last_two --json results.json

The same command again goes on with the models that are left. `HR@10` in the JSON file is of lists without what the user
met before, `HR@10_unmasked` of all items.
"""

from __future__ import annotations

import sys

from rayrec import fields, flags, signals
from rayrec.config import BaselinesConfig
from rayrec.methods import UNREAD

#: Settings of a language model's run that nothing here reads, by group.
_UNREAD = {"placement": UNREAD, "output": ("keep", "share", "track")}


def check_read(config: BaselinesConfig) -> None:
    """Refuse a setting that would change nothing, where it is not the default.

    Raises:
        ValueError: with the flag and the remedy.
    """
    for group, names in _UNREAD.items():
        fields.check_unread(getattr(config, group), names, "these models are trained and ranked without it")


def read(args: list[str] | None = None) -> BaselinesConfig:
    """Return the settings of a command line, by default this process's."""
    args = sys.argv[1:] if args is None else args
    return flags.read(BaselinesConfig, args, description=__doc__ or "", prog="rayrec baselines")


def main(args: list[str] | None = None) -> None:
    """Read a command line, train and rank."""
    config = read(args)
    signals.catch()
    from rayrec.driver.baselines import run  # heavy, and not needed for --help
    from rayrec.driver.session import ending

    with ending():
        check_read(config)
        run(config)
