"""Serve: recommendations of a tuned policy over HTTP, on Ray Serve.

    rayrec serve --policy runs/NAME
    RAYREC_TOKEN=WORD rayrec serve --policy runs/NAME --histories users.jsonl --generators 2 --state DIR

It answers until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import sys

from rayrec import flags, signals


def main(args: list[str] | None = None) -> None:
    """Read a command line and serve."""
    signals.catch("the same command serves again")
    from rayrec.serving.settings import ServeConfig

    args = sys.argv[1:] if args is None else args
    config = flags.read(ServeConfig, args, description=__doc__ or "", prog="rayrec serve")
    from rayrec.driver.session import ending  # heavy, and not needed for --help

    with ending():
        from rayrec.serving.deploy import run

        run(config)
