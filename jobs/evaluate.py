"""Evaluate a policy that is there already, on the rows and by the metrics of jobs/sprec.py; nothing is trained.

    python jobs/evaluate.py --policy FOLDER_OR_HUB_ID --data DIR --decode beams
    python jobs/evaluate.py --policy runs/NAME/03/prefer/policy --template compact --data DIR

A Hugging Face folder or hub id with safetensors weights and a tokenizer; of a LoRA policy, its folder of merged weights
(`policy/merged`). All other flags are those of jobs/sprec.py.
"""

from __future__ import annotations

import sys

from rayrec.methods import parse


def main() -> None:
    args = [word for arg in sys.argv[1:] for word in (arg.split("=", 1) if arg.startswith("--policy=") else [arg])]
    asked = {"-h", "--help"} & set(args)
    if "--policy" not in args[:-1] and not asked:
        sys.exit("error: --policy is missing. Name a Hugging Face folder or a hub id.")
    args = ["--model" if arg == "--policy" else arg for arg in args]
    config = parse(__doc__ or "", args if asked else ["--method", "zero-shot", *args])
    from rayrec.session import command  # heavy, and not needed for --help

    command(config)


if __name__ == "__main__":
    main()
