"""Recommend: the lists of all users by a tuned policy, in one file.

``python jobs/recommend.py --help`` shows how; rayrec/commands/recommend.py has it.
"""

from rayrec.commands.recommend import main

if __name__ == "__main__":
    main()
