"""``self_play``: the policy's own answers are the rejected titles (SPRec section 4.3)."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data import schema
from rayrec.data.catalogue import Catalogue
from rayrec.data.text import fold, numbered
from rayrec.negatives.draw import Draw, contexts
from rayrec.negatives.draw import table as table_of
from rayrec.negatives.random_items import random_negatives


class Answer(NamedTuple):
    """One output: ``raw`` as written, ``text`` as the preference step reads it, its ``ids`` where that is ``raw``."""

    raw: str | None
    text: str
    logprob: float | None
    ids: list[int] | None


def finish_self_play(
    examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw, sampler: str = "self_play"
) -> pa.Table:
    """Turn the policy's outputs (as in schema.PREDICTIONS) into ``draw.k`` rows of schema.NEGATIVES for each example.

    Outputs are taken best first. Repetitions are skipped, except in samples, which stay as they were drawn. An output
    that is empty or equals the target (``equal_target="next"``) is replaced by the next output, and where none is left
    by a ``random`` item, whose row keeps the replaced ``raw``. ``equal_target="drop"`` instead leaves out the pair of
    an output that equals the target: that example then has fewer rows, or none. Places without an output are filled
    from ``random``, ``raw`` null. Texts are equal after :func:`rayrec.data.text.fold`. Raises ValueError: an example
    has no row in ``outputs``; too few items are left to fill from.
    """
    lists = aligned(examples, outputs)
    plain, table = _plain_rows(examples, lists, draw, sampler)
    others = np.flatnonzero(~plain)
    if not len(others):
        return table
    left = [lists[name].take(pa.array(others)).to_pylist() for name in ("texts", "logprobs", "ids")]
    grounded: dict[str, str] = {}
    if draw.embedder is not None:
        from rayrec.grounding import ground

        unique = list(dict.fromkeys(text for texts in left[0] for text in texts))
        lists_of = zip(unique, ground(unique, catalogue, draw.embedder, k=1), strict=True)
        grounded = {text: titles[0] for text, titles in lists_of if titles}
    made, owners = [], []
    for owner, example, *one in zip(others, contexts(examples.take(others)), *left, strict=True):
        answers = []
        for raw, logprob, ids in zip(one[0], one[1], one[2] or itertools.repeat(None), strict=False):
            text = grounded.get(raw) or raw
            answers.append(Answer(raw, text, logprob, ids if text == raw else None))
        rows = _finish(example, answers, catalogue, draw, sampler)
        made += rows
        owners += [owner] * len(rows)
    order = np.argsort(np.concatenate([np.repeat(np.flatnonzero(plain), draw.k), owners]), kind="stable")
    return pa.concat_tables([table, table_of(made)]).take(order).combine_chunks()


def aligned(examples: pa.Table, outputs: pa.Table | None) -> dict[str, Any]:
    """Return the texts, log-probabilities and ids of each example, as lists."""
    names = examples["example_id"]
    known = pa.array([], pa.string()) if outputs is None else outputs["example_id"]
    place = pc.call_function("index_in", [names], pc.SetLookupOptions(known)).combine_chunks()
    if place.null_count or outputs is None:
        first = names.filter(place.is_null())[0]
        raise ValueError(f"Found no output for {place.null_count} examples, the first {first}. Generate them again.")
    found = {name: outputs[name].combine_chunks().take(place) for name in ("texts", "logprobs")}
    ids = outputs["ids"].combine_chunks().take(place) if "ids" in outputs.column_names else None
    return found | {"ids": pa.nulls(len(place), schema.PREDICTIONS.field("ids").type) if ids is None else ids}


def _plain_rows(examples: pa.Table, lists: dict[str, Any], draw: Draw, sampler: str) -> tuple[np.ndarray, pa.Table]:
    """Find the examples, (N,) bool, whose first K outputs are their rejected answers as they are; return these rows."""
    texts, k = lists["texts"].flatten(), draw.k
    length = lists["texts"].value_lengths().to_numpy()
    if draw.embedder is not None or not len(texts):
        return np.zeros(len(length), bool), table_of([])
    place_NK = np.minimum((np.cumsum(length) - length)[:, None] + np.arange(k), len(texts) - 1)
    numbers = {"": 0}
    text_NK, target_N = numbered(texts, numbers)[place_NK], numbered(examples["target"], numbers)
    plain = (length >= k) & (text_NK > 0).all(1) & (text_NK != target_N[:, None]).all(1)
    if sampler != "self_play_sample":
        plain &= (np.diff(np.sort(text_NK, axis=1), axis=1) > 0).all(1)
    owner, place = np.repeat(np.flatnonzero(plain), k), pa.array(place_NK[plain].ravel())
    ids = lists["ids"].flatten() if not lists["ids"].null_count else pa.nulls(len(texts), pa.list_(pa.int32()))
    columns = {
        "example_id": examples["example_id"].combine_chunks().take(pa.array(owner)),
        "policy": pa.repeat(draw.policy, len(owner)),
        "k": pa.array(np.tile(np.arange(k), len(owner) // k), pa.int32()),
        "sampler": pa.repeat(sampler, len(owner)),
        "text": texts.take(place),
        "raw": texts.take(place),
        "logprob": lists["logprobs"].flatten().take(place),
        "ids": ids.take(place),
    }
    return plain, schema.check(pa.table(columns), schema.NEGATIVES, "negatives")


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
    rows = [draw.row(example_id, k, sampler, a.text, a.raw, a.logprob, a.ids) for k, a in enumerate(kept)]
    missing = draw.k - dropped - len(kept)
    if not missing:
        return rows
    without = [text for a in kept for text in (a.text, fold(a.text))]
    titles = random_negatives(**example, catalogue=catalogue, draw=draw, k=missing, without=without)
    nothing = Answer(None, "", None, None)
    for title, (raw, _, logprob, _) in zip(titles, itertools.chain(replaced, itertools.repeat(nothing)), strict=False):
        rows.append(draw.row(example_id, len(rows), "random", title, raw, logprob))
    return rows
