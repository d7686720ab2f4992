"""Warnings for readers of a run's numbers: negatives that are not the policy's own, answers that are no titles, a first
policy that popularity beats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from rayrec.data.mapped import slices
from rayrec.data.text import fold
from rayrec.metrics import BEST
from rayrec.negatives import NEGATIVES
from rayrec.runs.manifest import MANIFEST, METRICS, read_json

#: Share of rows above which a phase is doubted, and of lost negatives above which a run stops.
DOUBTED, LOST = 0.1, 0.5
#: Decoding of evaluations in which a policy writes freely.
WRITTEN = ("greedy", "free_beams")


class Doubt(NamedTuple):
    """A phase, the share of its rows that are not what the method takes them for, and what that makes of it."""

    phase: str
    kind: str
    """`negatives`, `evaluation` or `accuracy`."""
    share: float
    text: str

    def __str__(self) -> str:
        return f"{self.phase}: {self.text}"


def found(metrics: Iterable[Mapping[str, Any]]) -> list[Doubt]:
    """Return the doubts of some phases' ``metrics.json``, in their order."""
    made, metrics = [], [*metrics]
    for one in metrics:
        made += [_of_negatives(record) for record in one.get("records", ()) if record.get("kind") == "negatives"]
        made += [_of_answers(counts) for counts in one.get("answers", ())]
    made.append(_of_accuracy([record for one in metrics for record in one.get("records", ())]))
    return [doubt for doubt in made if doubt is not None]


def of_run(folder: Path) -> list[Doubt]:
    """Return the doubts of the finished phases of a run."""
    return found(read_json(path.with_name(METRICS)) for path in sorted(folder.glob(f"*/*/{MANIFEST}")))


def _of_negatives(record: Mapping[str, Any]) -> Doubt | None:
    """Of one sampler's record (:meth:`rayrec.negatives.statistics.Statistics.result`), where the policy writes."""
    sampler = NEGATIVES.get(record["sampler"])
    wanted = record["rows"] + record["dropped"]
    if sampler is None or sampler.decode in (None, "score") or not wanted:
        return None
    random, lost = record["random"] / wanted, (record["random"] + record["dropped"]) / wanted
    if lost <= DOUBTED:
        return None
    empty, equal = record["empty"] or 0.0, record["equal_target"] or 0.0
    none = (record["random"] - record["replaced"]) / wanted
    text = f"{lost:.0%} of the rows lost the policy's own answer ({empty:.1%} of its answers are empty, {equal:.1%} "
    text += f"equal the target, {none:.1%} of the rows had none)"
    if random:
        own = 1 - random
        like = f"{record['sampler']}:{own:.2f} random:{random:.2f}"
        text += f"; random titles replace {random:.0%}, so the step learns as with --negatives {like}"
    if record["dropped"]:
        text += f"; {record['dropped'] / wanted:.0%} of the pairs are left out"
    return Doubt(record["phase"], "negatives", lost, text)


def _of_answers(counts: Mapping[str, Any]) -> Doubt | None:
    """Of the counts of :func:`count_answers`."""
    empty, other = (counts[name] / max(1, counts["rows"]) for name in ("empty", "no_title"))
    if empty + other <= DOUBTED:
        return None
    lists = "the lists of others hold the titles nearest to them" if counts["grounded"] else "others are no hits"
    text = f"{empty:.1%} of the {counts['decode']} answers are empty, {other:.1%} are no titles of the catalogue"
    text += f" (an empty answer has an empty list, {lists})" if other else " (an empty answer has an empty list)"
    text += "; --decode beams lists titles whatever the policy writes" if counts["grounded"] else ""
    return Doubt(counts["phase"], "evaluation", empty + other, text)


def _of_accuracy(records: Sequence[Mapping[str, Any]]) -> Doubt | None:
    """Of the first SFT, if all its lists of test rows are worse than Popular's."""
    tested = [record for record in records if record.get("split") == "test"]
    popular = [record for record in tested if record["kind"] == "baseline"]
    first = [record for record in tested if record.get("policy") == "00/sft"]
    if not popular or not first:
        return None
    key = [name for name in popular[0] if name.startswith(f"{BEST.name}@")][-1]
    best = max(record[key] for record in first)
    if best >= popular[0][key]:
        return None
    text = f"{key} is {best:.3f} after the first SFT, and Popular's {popular[0][key]:.3f}: self-play starts from a "
    text += "policy that has not learnt the histories. Train it longer, under another --name: --first-epochs, "
    text += "--first-rows, --first-lr; the tiny model also takes --pretrain-steps, and --preset demo sets all four"
    return Doubt(first[0]["phase"], "accuracy", 0.0, text)


def count_answers(
    phase: str, decode: str, predictions: pa.Table, titles: Iterable[str], chooses: bool
) -> dict[str, Any]:
    """Count the rows (schema.PREDICTIONS) whose first answer is empty or no title of the catalogue.

    Titles are compared after :func:`rayrec.data.text.fold`. Where the policy ``chooses`` from candidates, an answer
    that does not name exactly one has an empty list and counts as no title.
    """
    known = {fold(title) for title in titles}
    empty = other = 0
    for some in slices(predictions):
        for texts, listed in zip(some["texts"].to_pylist(), some["titles"].to_pylist(), strict=True):
            text = fold(texts[0]) if texts else ""
            empty += not text
            other += bool(text) and (not listed if chooses else text not in known)
    counts = {"rows": len(predictions), "empty": empty, "no_title": other}
    return {"phase": phase, "decode": decode, "grounded": decode == "greedy" and not chooses} | counts
