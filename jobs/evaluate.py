"""Evaluate a policy that is there already, on the rows and by the metrics of jobs/sprec.py; the policy is not trained.

    python jobs/evaluate.py --policy FOLDER_OR_HUB_ID --data DIR --decode beams
    python jobs/evaluate.py --policy runs/NAME/03/prefer/policy --template compact --data DIR

A Hugging Face folder or hub id with safetensors weights and a tokenizer. Of a LoRA policy the merged weights are taken,
which a run on CPUs leaves in `policy/merged`; a run on GPUs leaves none, and peft makes them, for a folder to which the
tokenizer's files are copied:

    base = AutoModelForCausalLM.from_pretrained(BASE)
    PeftModel.from_pretrained(base, "policy").merge_and_unload().save_pretrained("whole")

All other flags are those of jobs/sprec.py, but for --model, --method and --first-rows, which decide what is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rayrec import signals
from rayrec.config import Config
from rayrec.methods import parse


def main() -> None:
    args = [word for arg in sys.argv[1:] for word in (arg.split("=", 1) if arg.startswith("--policy=") else [arg])]
    asked = {"-h", "--help"} & set(args)
    if "--policy" not in args[:-1] and not asked:
        sys.exit("error: --policy is missing. Name a Hugging Face folder or a hub id.")
    try:
        check_words(args)
        args = [whole(arg) if before == "--policy" else arg for before, arg in zip(["", *args], args, strict=False)]
        args = ["--model" if arg == "--policy" else arg for arg in args]
        config = parse(__doc__ or "", args if asked else ["--method", "zero-shot", *args])
        check_untrained(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    signals.catch()
    from cost_model import of_plan  # heavy, and not needed for --help

    from rayrec.driver.session import command

    command(config, of_plan)


def check_words(args: list[str]) -> None:
    """Refuse flags in the place of which this job has its own.

    Raises:
        ValueError: with the flag and the remedy.
    """
    instead = {
        "--method": "The policy is evaluated as it is. Say how with --decode, --protocol and --ask.",
        "--model": "The policy is the model. Leave it out.",
    }
    for flag, remedy in instead.items():
        if any(word == flag or word.startswith(f"{flag}=") for word in args):
            raise ValueError(f"{flag} is not for this job. {remedy}")


def whole(policy: str) -> str:
    """The policy, or of adapters that have them the folder of their merged weights."""
    merged = Path(policy).expanduser() / "merged"
    return str(merged) if (merged.parent / "adapter_config.json").exists() and merged.is_dir() else policy


def check_untrained(config: Config) -> None:
    """Refuse what would train a policy.

    Raises:
        ValueError: with the flag and the remedy.
    """
    if config.pretrains:
        raise ValueError("--policy tiny is a model that a run makes. Name a Hugging Face folder or a hub id.")
    if rows := config.train.first_rows:
        raise ValueError(f"--first-rows {rows} would train the policy. Leave it out, or take jobs/sprec.py.")


if __name__ == "__main__":
    main()
