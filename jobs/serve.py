"""Serve: recommendations of a tuned policy over HTTP, on Ray Serve.

    python jobs/serve.py --policy runs/NAME
    RAYREC_TOKEN=WORD python jobs/serve.py --policy runs/NAME --histories users.jsonl --generators 2 --state DIR

It answers until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import tyro

from rayrec import signals


def main() -> None:
    signals.catch("the same command serves again")
    from rayrec.serving.settings import ServeConfig

    config = tyro.cli(ServeConfig, description=__doc__)
    from rayrec.driver.session import ending  # heavy, and not needed for --help

    with ending():
        from rayrec.serving.deploy import run

        run(config)


if __name__ == "__main__":
    main()
