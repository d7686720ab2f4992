"""Train and rank sequential recommenders and Popular on the rows of any source.

``python jobs/baselines.py --help`` shows how; rayrec/commands/baselines.py has it.
"""

from rayrec.commands.baselines import main

if __name__ == "__main__":
    main()
