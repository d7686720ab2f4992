"""How a policy is asked, written into its folder: a small JSON for programs and a model card for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayrec.models import hub

#: The file beside the weights. Its keys: ``policy``, the phase that made it; ``template``, ``history``, ``protocol``,
#: ``ask`` and ``ratings``, the settings of a prompt, named as the flags; ``prompt``, a prompt as text; ``eos`` and
#: ``eos_id``, by which an answer ends; ``max_length`` and ``max_new_tokens``, the most tokens of prompt and answer and
#: of an answer; ``catalogue``, the hash of its titles, and ``items``, their number.
FILE = "policy.json"
#: The settings of a prompt, by the group that has them.
ASKED = {"template": "model", "history": "data", "protocol": "data", "ask": "data", "ratings": "data"}
#: Stands where a policy's weights were removed.
REMOVED = "WEIGHTS-REMOVED.txt"


def catalogue_hash(titles: Sequence[str]) -> str:
    """Return the hash of a catalogue's titles in their order, 12 hexadecimal digits."""
    return hashlib.sha256("\n".join(titles).encode()).hexdigest()[:12]


def asked(path: str | Path) -> dict[str, Any] | None:
    """Return how the policy in a folder or of a hub id is asked; None for a model that no run of rayrec has tuned.

    Raises:
        ValueError: the folder's file is damaged, or the hub cannot be reached.
    """
    file = Path(path).expanduser() / FILE
    if hub.is_id(str(path)) and str(path) != "tiny":
        from transformers.utils.hub import cached_file

        hub.settle(str(path))
        raises = ("gated_repo", "missing_entries", "connection_errors")
        found = cached_file(str(path), FILE, **{f"_raise_exceptions_for_{name}": False for name in raises})
        if found is None:
            return None
        file = Path(str(found))
    if not file.exists():
        return None
    try:
        made = json.loads(file.read_text("utf-8"))
        if not isinstance(made, dict) or ASKED.keys() - made.keys():
            raise ValueError(f"wanted an object with {', '.join(ASKED)}")
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(
            f"{file}: not readable ({error}). Copy the policy's folder again, or remove this file."
        ) from error
    return made


def write(folder: Path, lines: Mapping[str, Any], base: str, adapter: bool, how: Mapping[str, Any] | None) -> None:
    """Write the model card of a policy and, where ``how`` says how it is asked, :data:`FILE`.

    ``lines`` are listed in the card; ``base`` names the base model.
    """
    if how is not None:
        (folder / FILE).write_text(json.dumps(how, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    head = ["---", f"library_name: {'peft' if adapter else 'transformers'}", f"base_model: {json.dumps(str(base))}"]
    head += ["pipeline_tag: text-generation", "tags:", "- recommendation", "- rayrec", "---", ""]
    body = ["# Recommender policy", ""]
    body += ["A language model that reads the titles of a user's history and writes the next one, tuned by rayrec.", ""]
    body += [f"- {key}: {value}" for key, value in lines.items()]
    (folder / "README.md").write_text("\n".join(head + body + _usage(how or {})) + "\n", encoding="utf-8")


def _usage(how: Mapping[str, Any]) -> list[str]:
    if not how:
        return []
    settings = ", ".join(f"{name} {how[name]}" for name in ASKED)
    text = ["", "## How it is asked", "", f"{settings}; at most {how['history']} titles, oldest first. A prompt:", ""]
    text += [f"    {line}" for line in how["prompt"].split("\n")]
    text += [
        "",
        f"An answer is a title and {how['eos']!r} (token {how['eos_id']}). Every title is tokenised apart from ",
    ]
    text[-1] += "the text around it."
    text += [f"The catalogue had {how['items']} titles (hash {how['catalogue']})."]
    if how["protocol"] == "open" and how["ask"] == "title":
        text += ["", "## Use", "", "```python", "import rayrec", ""]
        text += ['recommender = rayrec.Recommender.open("THIS FOLDER", "catalogue.parquet")']
        text += ['recommender.recommend([["First title", "Second title"]], k=10)', "```"]
    return text
