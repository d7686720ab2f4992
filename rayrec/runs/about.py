"""By what a run was begun: its command line, revision, host, device and date."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def about(device: str) -> dict[str, Any]:
    """Return the facts of this process; ``revision`` is None outside of a checkout."""
    program = Path(sys.argv[0])
    words = ["rayrec", program.parent.name, *sys.argv[1:]] if program.name == "__main__.py" else sys.argv
    return {
        "command": shlex.join(words),
        "revision": _revision(),
        "host": platform.node(),
        "device": f"{device}, {os.cpu_count()} cores",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _revision() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    line = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
