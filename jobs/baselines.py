"""Train and rank sequential recommenders and Popular on the rows of any source.

    python jobs/baselines.py --data DIR                                              # the rows of jobs/sprec.py's split
    python jobs/baselines.py --data DIR --models sasrec gru4rec caser --split leave_last_two --json results.json

The same command again goes on with the models that are left. `HR@10` in the JSON file is of lists without what the user
met before, `HR@10_unmasked` of all items.
"""

from __future__ import annotations

import tyro

from rayrec import signals
from rayrec.config import BaselinesConfig
from rayrec.methods import UNREAD

#: Settings of a language model's run that nothing here reads, by group.
_UNREAD = {"placement": UNREAD, "output": ("keep", "share", "track")}


def check_read(config: BaselinesConfig) -> None:
    """Refuse a setting that would change nothing, where it is not the default.

    Raises:
        ValueError: with the flag and the remedy.
    """
    plain = BaselinesConfig()
    for group, names in _UNREAD.items():
        for name in names:
            value = getattr(getattr(config, group), name)
            if value != getattr(getattr(plain, group), name):
                flag = ("--" if value is not False else "--no-") + name.replace("_", "-")
                raise ValueError(f"{flag}: these models are trained and ranked without it. Leave it out.")


def main() -> None:
    config = tyro.cli(BaselinesConfig, description=__doc__)
    signals.catch()
    from rayrec.driver.baselines import run  # heavy, and not needed for --help
    from rayrec.driver.session import ending

    with ending():
        check_read(config)
        run(config)


if __name__ == "__main__":
    main()
