"""Methods × seeds on one data set, side by side: every cell is a run of jobs/sprec.py that resumes.

``python jobs/compare.py --help`` shows how; rayrec/commands/compare.py has it.
"""

from rayrec.commands.compare import main

if __name__ == "__main__":
    raise SystemExit(main())
