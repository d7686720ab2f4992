"""Recommend: the lists of all users by a tuned policy, in one file.

    rayrec recommend --policy runs/NAME --data DIR --top-k 20 --out lists.parquet
    rayrec recommend --policy runs/NAME --histories users.jsonl --out lists.jsonl --generators 2

The same command again goes on after the parts that are finished.
"""

from __future__ import annotations

import sys

from rayrec import flags, signals


def main(args: list[str] | None = None) -> None:
    """Read a command line and write the lists."""
    signals.catch()
    from rayrec.recommend.batch import RecommendConfig, run

    args = sys.argv[1:] if args is None else args
    config = flags.read(RecommendConfig, args, description=__doc__ or "", prog="rayrec recommend")
    from rayrec.driver.session import ending  # heavy, and not needed for --help

    with ending():
        run(config)
