"""Rows of ``metrics.jsonl`` for people: which may be compared, what they are called, and what they measure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rayrec.metrics import BEST, FIRST, METRICS, Metric

Row = Mapping[str, Any]


def number(value: object, decimals: int = 3) -> str:
    """Return a number for people: thousands in groups, ``decimals`` for floats, an en dash where there is none."""
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:,.{decimals}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def signed(value: float | None, decimals: int = 3) -> str:
    """Return a difference for people, with its sign; an en dash where there is none."""
    return "–" if value is None else f"{value:+,.{decimals}f}".replace("-", "−")


def pairs(values: Mapping[str, Any]) -> str:
    """Return names and numbers in one line, without those that are None."""
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in values.items() if value is not None)


def caption(row: Row) -> str:
    """Return what a number of this row depends on: split, decoder, embedder and N."""
    embedder = f"embedder {row['embedder']}" if row.get("embedder") else None
    rows = f"N = {number(row['N'])}" if row.get("N") is not None else None
    rows = f"{rows} ({number(row['N_cold'])} cold)" if rows and row.get("N_cold") else rows
    over = f"over the {row['normalise']}" if row.get("normalise") else None
    parts = [str(part) for part in (row.get("split"), row.get("decode"), over, embedder, rows) if part]
    return ", ".join(parts) or "evaluation"


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return {caption: rows} of rows that may be compared, baselines first; the test split before others.

    A baseline joins every group of its split (test where it names none) whose other facts it does not contradict.
    """
    facts = ("split", "decode", "embedder", "N")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("kind") == "evaluation":
            groups.setdefault(caption(row), []).append(row)
    for row in reversed(baselines(rows)):
        known = {"split": "test"} | {fact: row[fact] for fact in facts if row.get(fact) is not None}
        homes = [group for group in groups.values() if all(group[-1].get(f, v) == v for f, v in known.items())]
        for group in homes or [groups.setdefault(caption(row), [])]:
            group.insert(0, row)
    return dict(sorted(groups.items(), key=lambda item: item[1][0].get("split", "test") != "test"))


def label(row: Row) -> str:
    """Return the name of a row: the baseline's or the first policy's model, else iteration and policy.

    A model that no run has tuned, as far as its files tell, is "not tuned here": others may have tuned it elsewhere.
    """
    if row.get("kind") == "baseline":
        return str(row.get("model", "baseline"))
    policy = row.get("policy", "–")
    if row.get("iteration") == 0:
        return f"{row.get('model', 'BIGRec' if str(policy).endswith('/sft') else 'not tuned here')} ({policy})"
    return f"iteration {row.get('iteration', '–')} ({policy})"


def policies(rows: Iterable[Row]) -> list[Row]:
    """Return the evaluations of policies among ``rows``, in the order of their iterations."""
    return sorted((r for r in rows if r.get("kind") == "evaluation"), key=lambda row: row.get("iteration", 0))


def baselines(rows: Iterable[Row]) -> list[Row]:
    """Return the other recommenders among ``rows``."""
    return [row for row in rows if row.get("kind") == "baseline"]


def cuts(rows: Iterable[Row]) -> list[int]:
    """Return the list lengths k at which any of ``rows`` has a metric, ascending."""
    found = (re.fullmatch(r"(.+)@(\d+)", key) for row in rows for key in row)
    return sorted({int(match[2]) for match in found if match and match[1] in METRICS})


def default_k(rows: Sequence[Row]) -> int:
    """Return 5 where it was computed, as in SPRec's tables, else the largest k (5 where there is none)."""
    found = cuts(rows)
    return 5 if 5 in found or not found else found[-1]


def shown(rows: Sequence[Row], ks: Sequence[int]) -> list[Metric]:
    """Return the metrics that ``rows`` have at any of ``ks``; one that only some records have needs a value."""

    def has(metric: Metric, row: Row, key: str) -> bool:
        return key in row and (metric.when == "always" or row[key] is not None)

    return [m for m in METRICS.values() if any(has(m, row, m.key(k)) for row in rows for k in ks)]


def noise(row: Row, k: int) -> str:
    """Return a sentence about the intervals of a row's first metric and of its cold targets; empty without any."""
    known = []
    for metric in (FIRST, *(one for one in METRICS.values() if one.when == "cold" and one.binomial)):
        share, rows = row.get(metric.key(k)), row.get(metric.count or "N")
        if share is not None and rows:
            from rayrec.metrics.intervals import wilson  # scipy.stats takes half a second to import

            half = max(abs(edge - share) for edge in wilson(share, rows))
            known.append((metric.key(k), f"± {half:.3f}", f"N = {number(rows)}"))
    if not known:
        return ""
    (key, half, rows), *more = known
    others = "".join(f", {name} to {reach} ({of})" for name, reach, of in more)
    return f"{key} is known to {half} (95 %, binomial, {rows}){others}: smaller differences may be noise."


def explained(rows: Sequence[Row], k: int | None = None) -> list[str]:
    """Return two lines about a table of ``rows``: what its columns measure, and what its rows are."""
    at = k or default_k(rows)
    columns = [metric for metric in shown(rows, [at]) if metric.brief and metric.about]
    told = []
    for better, words in (("up", "More is better"), ("down", "Less is better")):
        if some := [f"{metric.name} ({metric.about})" for metric in columns if metric.better == better]:
            told.append(f"{words}: {', '.join(some)}.")
    tuned, lines = policies(rows), [" ".join(told)] if told else []
    kinds = ["Popular: the same titles for everybody."] * any(row.get("model") == "Popular" for row in baselines(rows))
    kinds += ["BIGRec: tuned on histories alone."] * any(label(row).startswith("BIGRec") for row in tuned)
    if any(row.get("iteration") for row in tuned):
        kinds.append("Iteration t: after t rounds of self-play.")
    if tuned and (about := noise(tuned[-1], at)):
        kinds.append(about)
    return [*lines, " ".join(kinds)] if kinds else lines


def evaluated(row: Row) -> str:
    """Return the numbers of one evaluation in a line: what they depend on, and the metrics of the narrow table."""
    at = default_k([row])
    keys = [metric.key(at) for metric in shown([row], [at]) if metric.brief]
    return f"{caption(row)}: " + ", ".join(f"{key} {number(row.get(key))}" for key in keys)


def last_policy(rows: Sequence[Row]) -> str | None:
    """Return the policy of the highest iteration among evaluations, or None where there is none."""
    found = policies(rows)
    return max(found, key=lambda row: row.get("iteration", 0))["policy"] if found else None


def best_policy(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Return (policy, why) of the best on validation: :data:`rayrec.metrics.BEST` at the largest k; None without."""
    found = grouped([row for row in rows if row.get("kind") == "evaluation" and row.get("split") == "valid"])
    for title, group in found.items():
        key = BEST.key(max(cuts(group), default=0))
        known = [row for row in group if row.get(key) is not None]
        if not known:
            return None
        best = max(known, key=lambda row: (row[key], -row.get("iteration", 0)))
        return best["policy"], f"{key} {number(float(best[key]))}; {title}"
    return None


def genre_gaps(row: Row, k: int) -> dict[str, float] | None:
    """Return {genre: d_g} at ``k``, d_g = GP_g − GH_g (SPRec section 3.3), or None where a row has none."""
    genres = row.get("genres") or {}
    lists, history = genres.get(f"GP@{k}"), genres.get("GH")
    return {name: share - history[name] for name, share in lists.items()} if lists and history else None
