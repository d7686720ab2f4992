"""How a policy is asked: what a run writes into its policies' folders, and what it reads from one that it opens."""

from __future__ import annotations

from typing import Any

from rayrec.config import Config
from rayrec.data.catalogue import Catalogue
from rayrec.fields import flag
from rayrec.models.card import ASKED, catalogue_hash
from rayrec.prompts import Template

#: Placeholders in the prompt of a policy's card.
_TITLES, _CANDIDATES = ["First title", "Second title"], ["First candidate", "Second candidate"]


def how_asked(config: Config, template: Template, form: str, catalogue: Catalogue) -> dict[str, Any]:
    """Return the content of :data:`rayrec.models.card.FILE`, but for the phase, for policies of this run."""
    found: dict[str, Any] = {name: getattr(getattr(config, group), name) for name, group in ASKED.items()}
    chooses = config.data.protocol == "candidates"
    among = (_CANDIDATES[:1] if config.data.ask == "liking" else _CANDIDATES) if chooses else None
    ids = template.prompt_ids(_TITLES, [5.0, 4.0] if template.rated else None, among)
    return found | {
        "template": form,
        "item_vectors": config.model.item_vectors,
        "prompt": template.tokenizer.decode(ids, skip_special_tokens=False),
        "eos": template.tokenizer.id_to_token(template.eos_id),
        "eos_id": template.eos_id,
        "max_length": config.model.max_length,
        "max_new_tokens": config.model.max_new_tokens,
        "catalogue": catalogue_hash(catalogue.titles),
        "items": len(catalogue),
    }


def check_asked(config: Config, asked: dict[str, Any]) -> None:
    """Refuse to ask a policy in another way than it was tuned for; one that is tuned further may get other rows.

    Raises:
        ValueError: with the flag, its value and the policy's.
    """
    tunes = config.train.first_rows > 0 or config.train.iterations > 0
    for name, group in ASKED.items():
        here, wanted = getattr(getattr(config, group), name), asked[name]
        if here == wanted or (name == "template" and here == "auto") or (tunes and name != "template"):
            continue
        shown = f"{flag(name)} {wanted}" if not isinstance(wanted, bool) else flag(name if wanted else f"no-{name}")
        there = f"{flag(name)} {here}" if not isinstance(here, bool) else flag(name if here else f"no-{name}")
        raise ValueError(
            f"{there}: the policy {config.model.model} was tuned with {shown} and knows no other prompt. Take {shown}, "
            "or leave it out where the command reads it from the policy."
        )


def described(asked: dict[str, Any], catalogue: Catalogue) -> str:
    """The plan's line about a policy that another run has tuned."""
    form = ", ".join(f"{name} {asked[name]}" for name in ("template", "history", "protocol"))
    line = f"tuned by rayrec ({asked.get('policy', 'policy')}); {form}"
    if asked.get("catalogue") in (None, catalogue_hash(catalogue.titles)):
        return line
    return f"{line}; its catalogue was another one, of {asked.get('items')} titles: here are {len(catalogue)}"
