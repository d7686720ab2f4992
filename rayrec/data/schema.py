"""One Arrow schema per table; every reader and writer goes through :func:`check`.

A title is the key of an item everywhere: items with equal titles are one item.
Text written by a model is kept apart: a column named ``title`` or ``titles`` holds catalogue titles only.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_TEXTS = pa.list_(pa.field("item", pa.string(), nullable=False))
_IDS = pa.list_(pa.int32())
_TYPES = {"text": pa.string(), "int32": pa.int32(), "int64": pa.int64(), "float": pa.float32()}
_TYPES |= {"texts": _TEXTS, "floats": pa.list_(pa.float32()), "ids": _IDS, "lists": pa.list_(_IDS)}


def make(columns: str) -> pa.Schema:
    """The schema of ``name type`` pairs with commas between them; ``?`` after a type allows nulls."""
    pairs = (column.split() for column in columns.split(","))
    return pa.schema([pa.field(name, _TYPES[kind.rstrip("?")], kind.endswith("?")) for name, kind in pairs])


#: What users did. ``timestamp`` is in seconds since the epoch, or the position in a source without times.
INTERACTIONS = make("user text, title text, rating float?, timestamp int64")

#: ``item`` is the row number (ties are broken by it), ``ids`` the data's own names of the item, ``popularity`` counts
#: the training split only.
CATALOGUE = make("item int32, title text, ids texts, genres texts, popularity int64")

#: One window: the last history titles, oldest first, and the title that came next. A target may be outside the
#: catalogue. ``candidates`` are the titles to choose from, null where prompts list none. The driver appends to training
#: rows ``number`` (int64), the row's place in the training split, and with --reweight ``weight`` (float32).
EXAMPLES = make(
    "example_id text, split text, user text, timestamp int64, history texts, history_ratings floats?, target text, "
    "target_rating float?, candidates texts?"
)

#: One rejected answer. ``text`` is what the preference step reads; ``raw`` is what the policy wrote (null where none
#: wrote it); ``sampler`` is what made ``text`` (a replaced self-play output names its replacement); ``k`` counts from
#: 0; ``logprob`` is the log-probability of ``raw``, EOS included, in nats, where that is null that of ``text``, and
#: null where no policy was asked (``--score-negatives`` asks); ``ids`` are the tokens of ``text``, EOS included,
#: as the policy wrote them, and null where ``text`` is not what it wrote.
NEGATIVES = make("example_id text, policy text, k int32, sampler text, text text, raw text?, logprob float?, ids ids?")

#: Rejected answers as a run keeps them, those of an example one after the other: ``number`` is the place of the example
#: in the training rows, by which they are joined.
REJECTED = NEGATIVES.append(pa.field("number", pa.int32(), nullable=False))

#: One training row of the SFT (``rejected`` empty) or of the preference step. ``policy`` made the rejected answers;
#: rows with equal ``step`` are one global batch, ``slot`` is the place in it, and a row of ``weight`` 0 is padding.
#: Null unless the objective reads them: ``scores``, φ of the chosen and then of the rejected answers; ``smoothing``, an
#: oracle's doubt in each pair; ``neighbour``, the chosen answer of another row of the batch. Further columns that an
#: objective reads (training.pair_columns.COLUMNS) are appended.
PREFERENCES = make(
    "example_id text, policy text?, history texts, history_ratings floats?, candidates texts?, chosen text, "
    "rejected texts, rejected_ids lists?, weight float, step int32, slot int32, scores floats?, smoothing floats?, "
    "neighbour text?"
)

#: The same row as token ids: those of the ``prompt``, of the ``answers``, the chosen one first, and of the
#: ``neighbour``, EOS included.
TOKENS = make(
    "example_id text, weight float, step int32, slot int32, scores floats?, smoothing floats?, prompt ids, "
    "answers lists, neighbour ids?"
)

#: The answers of a policy to one example: ``texts`` as generated, best first, their token ``ids``, EOS included (null
#: where given answers were scored, or no policy was asked), their log-probabilities, and the ``titles`` of the top-k
#: list that evaluation scores. Null unless they were measured: ``kept``, the share of the policy's probability that it
#: leaves to titles, by those of the row; ``target_logprob``, the target's, as the ``logprobs`` of the titles are.
PREDICTIONS = make(
    "example_id text, policy text, decode text, target text, texts texts, ids lists?, logprobs floats, titles texts, "
    "kept float?, target_logprob float?"
)

#: The same as a run keeps them: with the user that the example is of, and the data's own names of ``titles``, empty
#: where it has none.
IDENTIFIED = pa.schema([*PREDICTIONS, *make("user text, items texts")])


def extended(schema: pa.Schema, table: pa.Table, columns: Iterable[str]) -> pa.Schema:
    """Return ``schema`` and those of the table's ``columns`` that are not in it, by name."""
    for name in sorted({*columns} & {*table.column_names} - {*schema.names}):
        schema = schema.append(table.schema.field(name))
    return schema


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return ``table`` with other values of a column, cast to its type."""
    at = table.column_names.index(name)
    field = table.schema.field(at)
    return table.set_column(at, field, pa.array(values, field.type))


def places(values: pa.Array | pa.ChunkedArray, known: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the place of each value in ``known``, (N,) int64; -1 where it is absent."""
    found = pc.call_function("index_in", [values], pc.SetLookupOptions(known))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def check(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """Return ``table`` with the columns and types of ``schema``, or raise ValueError; ``what`` names it in errors."""
    missing = [f.name for f in schema if f.name not in table.column_names]
    if missing:
        raise ValueError(
            f"{what}: found columns {table.column_names}, but {missing} are missing. Add them or name another file."
        )
    try:
        table = table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ValueError(f"{what}: columns do not fit {schema.names}: {error}") from error
    for f in schema:
        if not f.nullable and (nulls := table.column(f.name).null_count):
            raise ValueError(f"{what}: column '{f.name}' has {nulls} empty values, but must have none.")
    return table
