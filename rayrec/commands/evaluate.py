"""Evaluate a policy that is there already, on the rows and by the metrics of a run; the policy is not trained.

    rayrec evaluate --policy runs/NAME --data DIR --decode beams      # its best policy on validation rows
    rayrec evaluate --policy runs/NAME/03/prefer --data DIR
    rayrec evaluate --policy FOLDER_OR_HUB_ID --data DIR

A policy of a run knows its prompt form, its history and its protocol; other flags than its own are refused. Of a LoRA
policy the merged weights are taken, which a run on CPUs leaves in `policy/merged`; a run on GPUs leaves none, and peft
makes them, for a folder to which the tokenizer's files and policy.json are copied:

    base = AutoModelForCausalLM.from_pretrained(BASE)
    PeftModel.from_pretrained(base, "policy").merge_and_unload().save_pretrained("whole")

All other flags are those of `rayrec sprec`, but for --model, --method and --first-rows, which decide what is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rayrec import signals
from rayrec.config import Config
from rayrec.fields import flag
from rayrec.methods import parse
from rayrec.models import card
from rayrec.recommend import places


def main(args: list[str] | None = None) -> None:
    """Read a command line and do its evaluation."""
    try:
        config = read(sys.argv[1:] if args is None else args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    signals.catch()
    from rayrec.commands.sprec import do

    do(config)


def read(args: list[str]) -> Config:
    """Return the settings of a command line.

    Raises:
        ValueError: no policy, or a flag that would train one.
    """
    args = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--policy=") else [arg])]
    if {"-h", "--help", "--help-all"} & set(args):
        return parse(__doc__ or "", args, prog="rayrec evaluate")
    if "--policy" not in args[:-1]:
        raise ValueError("--policy is missing. Name a Hugging Face folder or a hub id.")
    check_words(args)
    check_untrained(parse("", ["--method", "zero-shot", *("--model" if arg == "--policy" else arg for arg in args)]))
    args = [whole(arg) if before == "--policy" else arg for before, arg in zip(["", *args], args, strict=False)]
    policy = args[args.index("--policy") + 1]
    args = ["--model" if arg == "--policy" else arg for arg in args]
    return parse("", ["--method", "zero-shot", *args, *as_asked(policy, args)])


def as_asked(policy: str, args: list[str]) -> list[str]:
    """The flags by which a policy is asked as in its own run, but for those that the command names."""
    asked, found = card.asked(policy), list[str]()
    for name in card.ASKED if asked else ():
        value, names = asked[name] if asked else None, {flag(name), flag(f"no-{name}")}
        if not names & {word.partition("=")[0] for word in args}:
            found += [flag(name if value else f"no-{name}")] if isinstance(value, bool) else [flag(name), str(value)]
    return found


def check_words(args: list[str]) -> None:
    """Refuse flags in the place of which this job has its own.

    Raises:
        ValueError: with the flag and the remedy.
    """
    instead = {
        "--method": "The policy is evaluated as it is. Say how with --decode, --protocol and --ask.",
        "--model": "The policy is the model. Leave it out.",
    }
    for name, remedy in instead.items():
        if any(word == name or word.startswith(f"{name}=") for word in args):
            raise ValueError(f"{name} is not for this job. {remedy}")


def whole(policy: str) -> str:
    """The folder of a policy's whole model, of adapters their merged weights; of a run its best policy.

    Raises:
        ValueError: the run has no finished policy, or its weights were removed.
    """
    found = places.find(policy).model
    merged = Path(found).expanduser() / "merged"
    return str(merged) if (merged.parent / "adapter_config.json").exists() and merged.is_dir() else found


def check_untrained(config: Config) -> None:
    """Refuse what would train a policy.

    Raises:
        ValueError: with the flag and the remedy.
    """
    if config.pretrains:
        raise ValueError("--policy tiny is a model that a run makes. Name a Hugging Face folder or a hub id.")
    if rows := config.train.first_rows:
        raise ValueError(f"--first-rows {rows} would train the policy. Leave it out, or take rayrec sprec.")
