"""Recommend: the lists of all users by a tuned policy, in one file.

    python jobs/recommend.py --policy runs/NAME --data DIR --top-k 20 --out lists.parquet
    python jobs/recommend.py --policy runs/NAME --histories users.jsonl --out lists.jsonl --generators 2

The same command again goes on after the parts that are finished.
"""

from __future__ import annotations

import tyro

from rayrec import signals


def main() -> None:
    signals.catch()
    from rayrec.recommend.batch import RecommendConfig, run

    config = tyro.cli(RecommendConfig, description=__doc__)
    from rayrec.driver.session import ending  # heavy, and not needed for --help

    with ending():
        run(config)


if __name__ == "__main__":
    main()
