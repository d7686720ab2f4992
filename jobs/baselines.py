"""Train and rank sequential recommenders and Popular on the rows of any source.

    python jobs/baselines.py --data DIR                                              # the rows of jobs/sprec.py's split
    python jobs/baselines.py --data DIR --models sasrec gru4rec caser --split leave_last_two --json results.json

The same command again goes on with the models that are left. `HR@10` in the JSON file is of lists without what the user
met before, `HR@10_unmasked` of all items.
"""

from __future__ import annotations

import tyro

from rayrec.config import BaselinesConfig


def main() -> None:
    config = tyro.cli(BaselinesConfig, description=__doc__)
    from rayrec.baselines import run  # heavy, and not needed for --help
    from rayrec.session import ending

    with ending():
        run(config)


if __name__ == "__main__":
    main()
