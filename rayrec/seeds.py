"""Seeds that depend on the names of a draw alone: not on order, partition, process or Python's hash seed."""

from __future__ import annotations

import hashlib


def seed_of(*names: object) -> int:
    """A seed below 2**63 from the run's seed and the names of the draw: ``seed_of(0, "01/negatives", 7)``."""
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
