"""Mixtures: exact shares of the rows for several samplers (SPRec figure 5)."""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayrec.data.mapped import ascending, slices
from rayrec.negatives import DEFAULTS, NEGATIVES
from rayrec.seeds import seed_of


def help_text() -> str:
    """Return the help of ``--negatives``, a line for each sampler."""
    lines = [
        "Samplers of rejected answers: one, or a mixture such as `self_play:0.75 random:0.25`. Default: "
        + ", ".join(f"{name} with --protocol {protocol}" for protocol, name in DEFAULTS.items()),
        *(f"{name}: {sampler.doc}" for name, sampler in NEGATIVES.items()),
    ]
    return ".\n".join(lines)


def parse(specs: Sequence[str]) -> dict[str, float]:
    """Return the share of each sampler, as of ``self_play:0.75 random:0.25``; ValueError for wrong names or shares."""
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


def assign(examples: pa.Table, shares: dict[str, float], seed: int, iteration: int) -> dict[str, np.ndarray]:
    """Return the row numbers of each sampler, ascending: round(share × examples) of them, every example once.

    The largest remainders are rounded up so that no example is left over. The sampler of an example depends on (seed,
    iteration, example id) and not on the order of the rows.
    """
    if len(shares) == 1:
        return {next(iter(shares)): ascending(len(examples))}
    ids = (example_id for some in slices(examples) for example_id in some["example_id"].to_pylist())
    order = np.argsort(np.fromiter((seed_of(seed, "mixture", iteration, one) for one in ids), np.int64))
    exact = {name: share * len(order) for name, share in shares.items()}
    counts = {name: math.floor(size) for name, size in exact.items()}
    for name in sorted(shares, key=lambda n: (counts[n] - exact[n], n))[: len(order) - sum(counts.values())]:
        counts[name] += 1
    parts = np.split(order, np.cumsum(list(counts.values()))[:-1])
    return {name: np.sort(part) for name, part in zip(counts, parts, strict=True) if len(part)}
