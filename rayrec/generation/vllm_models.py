"""Architectures, adapters and ranks that vLLM supports, read from its own source."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

#: Smallest head dimension of vLLM's attention on CPUs.
SMALLEST_HEAD = 32
#: The ranks for which vLLM makes room; it takes an adapter of any rank up to that.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: vLLM's file that names its architectures.
_REGISTRY = Path("model_executor/models/registry.py")


def _registered(architecture: str) -> tuple[Path, str, str] | None:
    """Return vLLM's folder of models, and the module and class of an architecture, "" if it has none; None if unknown.

    By its source, as its import takes half a minute.
    """
    spec = importlib.util.find_spec("vllm")
    registry = Path(spec.origin or "").parent / _REGISTRY if spec else Path()
    if not registry.is_file():
        return None  # another version; what it computes is compared at the first load
    found = re.findall(rf'"{architecture}": \(\s*"(\w+)",\s*"(\w+)"', registry.read_text(encoding="utf-8"))
    own = [one for one in found if one[0] != "transformers"]
    return (registry.parent, *own[0]) if own else (registry.parent, "", "")


def implements(architecture: str) -> bool:
    """Whether vLLM has an architecture itself."""
    found = _registered(architecture)
    return found is None or bool(found[1])


def takes_adapters(architecture: str) -> bool:
    """Whether vLLM's class of an architecture says so; what it inherits from other files counts as a yes."""
    found = _registered(architecture)
    if found is None or not found[1]:
        return True  # transformers' classes in vLLM take some
    file = found[0] / f"{found[1]}.py"
    classes = dict(re.findall(r"^class (\w+)\(([^)]*)\)", file.read_text("utf-8"), re.M)) if file.is_file() else {}
    names, own = [found[2]], list[str]()
    while names:
        own += (bases := re.findall(r"\w+", classes.get(names.pop(), "elsewhere")))
        names += [base for base in bases if base in classes]
    return "SupportsLoRA" in own or not {*own} <= {"nn", "Module", "SupportsPP", "SupportsQuant", *classes}


def lora_room(rank: int) -> int:
    """Return the room, one of RANKS from 8 on, that an adapter of ``rank`` needs."""
    return next(room for room in RANKS[1:] if room >= rank)
