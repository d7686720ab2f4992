"""SPRec: tune a language-model recommender by self-play, from interaction logs to a policy and a report.

    python jobs/sprec.py                                     # embedded data, tiny model, this machine
    python jobs/sprec.py --source sprec --data DIR --model tiny --iterations 3
    ray job submit --working-dir . -- python jobs/sprec.py --preset paper --data /shared/DIR --runs /shared/runs

The same command again goes on where the run stopped. The algorithm is `self_play` in rayrec/selfplay.py.
"""

from __future__ import annotations

from rayrec import signals


def main() -> None:
    signals.catch()
    from rayrec.generation import ENGINES
    from rayrec.methods import parse  # now, so that rows which a script added to the tables count

    config = parse(__doc__ or "", engines=ENGINES)
    from cost_model import of_plan  # heavy, and not needed for --help

    from rayrec.driver.session import command

    command(config, of_plan)


if __name__ == "__main__":
    main()
