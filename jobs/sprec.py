"""SPRec: tune a language-model recommender by self-play, from interaction logs to a policy and a report.

    python jobs/sprec.py                                     # embedded data, tiny model, this machine
    python jobs/sprec.py --source sprec --data DIR --model tiny --iterations 3
    ray job submit --working-dir . -- python jobs/sprec.py --preset paper --data /shared/DIR --runs /shared/runs

The same command again goes on where the run stopped. The algorithm is `self_play` in rayrec/selfplay.py.
"""

from rayrec.commands import sprec


def main() -> None:
    sprec.main()  # defaults, then --preset, --method and flags; the plan, the loop, the table, report.html


if __name__ == "__main__":
    main()
