"""``self_play``: the policy's own answers are the rejected titles (SPRec section 4.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from rayrec.data.text import fold
from rayrec.negatives.draw import Draw, contexts, table
from rayrec.negatives.random_items import random_negatives

if TYPE_CHECKING:
    from rayrec.data.catalogue import Catalogue


class Answer(NamedTuple):
    """One output: ``raw`` as written, ``text`` as the preference step reads it."""

    raw: str
    text: str
    logprob: float | None


def finish_self_play(
    examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw, sampler: str = "self_play"
) -> pa.Table:
    """Turn the policy's outputs into ``draw.k`` rows of schema.NEGATIVES for each example.

    Outputs are taken best first. Repetitions are skipped, except in samples, which stay as they were drawn. An output
    that is empty or equals the target (``equal_target="next"``) is replaced by the next output, and where none is left
    by a ``random`` item, whose row keeps the replaced ``raw``. ``equal_target="drop"`` instead leaves out the pair of
    an output that equals the target: that example then has fewer rows, or none. Places without an output are filled
    from ``random``, ``raw`` null. Texts are equal after :func:`rayrec.data.text.fold`.
    :class:`rayrec.negatives.statistics.Statistics` counts every case.

    Args:
        outputs: columns ``example_id``, ``texts`` (best first) and ``logprobs``, as in schema.PREDICTIONS.

    Raises:
        ValueError: an example has no row in ``outputs``; too few items are left to fill from.
    """
    columns = ["example_id", "texts", "logprobs"]
    written = {row["example_id"]: row for row in outputs.select(columns).to_pylist()} if outputs is not None else {}
    missing = [example_id for example_id in examples["example_id"].to_pylist() if example_id not in written]
    if missing:
        raise ValueError(f"Found no output for {len(missing)} examples, the first {missing[0]}. Generate them again.")
    grounded = _grounded([text for row in written.values() for text in row["texts"]], catalogue, draw)
    rows = []
    for example in contexts(examples):
        row = written[example["example_id"]]
        answers = [
            Answer(text, grounded.get(text) or text, logprob)
            for text, logprob in zip(row["texts"], row["logprobs"], strict=True)
        ]
        rows += _finish(example, answers, catalogue, draw, sampler)
    return table(rows)


def _finish(example: dict, answers: list[Answer], catalogue: Catalogue, draw: Draw, sampler: str) -> list[dict]:
    target, seen = fold(example["target"]), set()
    kept: list[Answer] = []
    replaced: list[Answer] = []
    dropped = 0
    for answer in answers:
        key = fold(answer.text)
        if (key in seen and sampler != "self_play_sample") or len(kept) + dropped == draw.k:
            continue
        seen.add(key)
        if key == target and draw.equal_target == "drop":
            dropped += 1
        elif key in ("", target):
            replaced.append(answer)
        else:
            kept.append(answer)
    example_id = example["example_id"]
    rows = [draw.row(example_id, k, sampler, a.text, a.raw, a.logprob) for k, a in enumerate(kept)]
    missing = draw.k - dropped - len(kept)
    if not missing:
        return rows
    titles = random_negatives(**example, catalogue=catalogue, draw=draw, k=missing, without=[a.text for a in kept])
    for place, title in enumerate(titles):
        raw, _, logprob = replaced[place] if place < len(replaced) else (None, None, None)
        rows.append(draw.row(example_id, len(rows), "random", title, raw, logprob))
    return rows


def _grounded(texts: list[str], catalogue: Catalogue, draw: Draw) -> dict[str, str]:
    """Return the nearest title of every text that has one; nothing if the draw does not ground."""
    if draw.embedder is None:
        return {}
    from rayrec.grounding import ground

    unique = list(dict.fromkeys(texts))
    lists = ground(unique, catalogue, draw.embedder, k=1)
    return {text: titles[0] for text, titles in zip(unique, lists, strict=True) if titles}
