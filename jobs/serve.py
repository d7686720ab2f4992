"""Serve: recommendations of a tuned policy over HTTP, on Ray Serve.

``python jobs/serve.py --help`` shows how; rayrec/commands/serve.py has it.
"""

from rayrec.commands.serve import main

if __name__ == "__main__":
    main()
