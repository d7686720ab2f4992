"""The part of a log between two moments."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from rayrec.data.mapped import take


def moment(name: str, text: str) -> int:
    """Return the seconds since the epoch of a date, an ISO time (UTC without a zone) or a number of seconds.

    Raises:
        ValueError: ``text`` is none of these; with the flag ``name``.
    """
    try:
        if text.strip().lstrip("-").isdecimal() and len(text.strip()) != 8:  # 20240131 is a date
            return int(text)
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"--{name} {text!r} is no moment. Take a date such as 2024-01-31, a time such as 2024-01-31T12:00, or "
            "seconds since the epoch."
        ) from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def between(interactions: pa.Table, since: str | None, until: str | None) -> tuple[pa.Table, dict[str, int]]:
    """Return the interactions (schema.INTERACTIONS) from ``since`` on and before ``until``, and counts of the others.

    Raises:
        ValueError: a moment cannot be read, or nothing lies between the two.
    """
    time_M = interactions["timestamp"].to_numpy()
    early_M = np.zeros(len(time_M), bool) if since is None else time_M < moment("since", since)
    late_M = np.zeros(len(time_M), bool) if until is None else time_M >= moment("until", until)
    kept_M = ~(early_M | late_M)
    if len(time_M) and not kept_M.any():
        first, last = (datetime.fromtimestamp(int(t), UTC).isoformat() for t in (time_M.min(), time_M.max()))
        flags = " ".join(f"--{name} {text}" for name, text in (("since", since), ("until", until)) if text is not None)
        raise ValueError(f"{flags}: no interaction is left; they are from {first} to {last}. Take moments between.")
    counts = {"interactions_before_since": early_M} if since is not None else {}
    counts |= {"interactions_from_until": late_M} if until is not None else {}
    return take(interactions, np.flatnonzero(kept_M)), {name: int(some.sum()) for name, some in counts.items()}
