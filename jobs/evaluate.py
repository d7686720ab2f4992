"""Evaluate a policy that is there already, on the rows and by the metrics of jobs/sprec.py.

``python jobs/evaluate.py --help`` shows how; rayrec/commands/evaluate.py has it.
"""

from rayrec.commands.evaluate import main

if __name__ == "__main__":
    main()
