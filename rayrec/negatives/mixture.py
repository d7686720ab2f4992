"""Mixtures: exact shares of the rows for several samplers (SPRec figure 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rayrec.negatives import NEGATIVES
from rayrec.seeds import seed_of


def parse(specs: Sequence[str]) -> dict[str, float]:
    """Return the share of each sampler: ``["random"]``, or ``["self_play:0.75", "random:0.25"]``.

    Raises:
        ValueError: an unknown or repeated name, or shares that are not in (0, 1] or do not sum to 1.
    """
    shares: dict[str, float] = {}
    for spec in specs:
        name, colon, share = spec.partition(":")
        if name not in NEGATIVES:
            raise ValueError(f"--negatives {spec}: found no sampler {name!r}. Choose from {', '.join(NEGATIVES)}.")
        if name in shares:
            raise ValueError(f"--negatives names {name} twice. Add its shares up.")
        if not colon and len(specs) > 1:
            raise ValueError(f"--negatives {spec}: a mixture needs shares that sum to 1, such as {name}:0.5.")
        try:
            shares[name] = float(share) if colon else 1.0
        except ValueError:
            raise ValueError(f"--negatives {spec}: {share!r} is no number. Write a share such as {name}:0.5.") from None
    if not shares or not all(0 < share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(
            f"--negatives {' '.join(specs)}: the shares must be above 0 and sum to 1, found {sum(shares.values()):g}."
        )
    return shares


def assign(example_ids: Sequence[str], shares: dict[str, float], seed: int, iteration: int) -> dict[str, list[int]]:
    """Return the row numbers of each sampler, ascending: round(share × distinct examples) of them.

    The largest remainders are rounded up so that no example is left over. Who gets which sampler depends on (seed,
    iteration, example id) and not on the order of the rows; a repeated example has its rows together.
    """
    if len(shares) == 1:
        return {next(iter(shares)): list(range(len(example_ids)))}
    order = sorted(set(example_ids), key=lambda e: (seed_of(seed, "mixture", iteration, e), e))
    exact = {name: share * len(order) for name, share in shares.items()}
    counts = {name: math.floor(size) for name, size in exact.items()}
    for name in sorted(shares, key=lambda n: (counts[n] - exact[n], n))[: len(order) - sum(counts.values())]:
        counts[name] += 1
    sampler, start = {}, 0
    for name, count in counts.items():
        sampler |= dict.fromkeys(order[start : start + count], name)
        start += count
    return {name: [i for i, e in enumerate(example_ids) if sampler[e] == name] for name in shares if counts[name]}
