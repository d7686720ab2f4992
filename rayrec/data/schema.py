"""One Arrow schema per table; every reader and writer goes through :func:`check`.

A title is the key of an item everywhere: items with equal titles are one item.
Text written by a model is kept apart: a column named ``title`` or ``titles`` holds catalogue titles only.
"""

from collections.abc import Iterable

import pyarrow as pa


def _field(name: str, type_: pa.DataType, null: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=null)


_strings = pa.list_(pa.field("item", pa.string(), nullable=False))
_floats = pa.list_(pa.field("item", pa.float32()))
_ids = pa.list_(pa.field("item", pa.int32()))

#: What users did. ``timestamp`` is in seconds since the epoch, or, where a source has no times, the position in its
#: order.
INTERACTIONS = pa.schema(
    [
        _field("user", pa.string()),
        _field("title", pa.string()),
        _field("rating", pa.float32(), null=True),
        _field("timestamp", pa.int64()),
    ]
)

#: The items. ``item`` is the row number (ties are broken by it), ``title`` is unique, ``popularity`` counts the
#: training split only.
CATALOGUE = pa.schema(
    [
        _field("item", pa.int32()),
        _field("title", pa.string()),
        _field("genres", _strings),
        _field("popularity", pa.int64()),
    ]
)

#: One window: the last history titles, oldest first, and the title that came next. A target may be outside the
#: catalogue. ``candidates`` are the titles to choose from, null where prompts list none. The driver appends to training
#: rows ``number`` (int64), the row's place in the training split, and with --reweight ``weight`` (float32).
EXAMPLES = pa.schema(
    [
        _field("example_id", pa.string()),
        _field("split", pa.string()),
        _field("user", pa.string()),
        _field("timestamp", pa.int64()),
        _field("history", _strings),
        _field("history_ratings", _floats, null=True),
        _field("target", pa.string()),
        _field("target_rating", pa.float32(), null=True),
        _field("candidates", _strings, null=True),
    ]
)

#: One rejected answer. ``text`` is what the preference step reads; ``raw`` is what the policy wrote (null where none
#: wrote it); ``sampler`` is what made ``text`` (a replaced self-play output names its replacement); ``k`` counts from
#: 0; ``logprob`` is the log-probability of ``raw``, EOS included, in nats, where that is null that of ``text``, and
#: null where no policy was asked (``--score-negatives`` asks); ``ids`` are the tokens of ``text``, EOS included,
#: as the policy wrote them, and null where ``text`` is not what it wrote.
NEGATIVES = pa.schema(
    [
        _field("example_id", pa.string()),
        _field("policy", pa.string()),
        _field("k", pa.int32()),
        _field("sampler", pa.string()),
        _field("text", pa.string()),
        _field("raw", pa.string(), null=True),
        _field("logprob", pa.float32(), null=True),
        _field("ids", _ids, null=True),
    ]
)

#: Rejected answers as a run keeps them, those of an example one after the other: ``number`` is the place of the example
#: in the training rows, by which they are joined.
REJECTED = NEGATIVES.append(_field("number", pa.int32()))

#: One training row of the SFT (``rejected`` empty) or of the preference step. ``policy`` made the rejected answers;
#: rows with equal ``step`` are one global batch, ``slot`` is the place in it, and a row of ``weight`` 0 is padding.
#: ``rejected_ids`` are those of schema.NEGATIVES, null in a table without negatives.
#: Null unless the objective reads them: ``scores``, φ of the chosen and then of the rejected answers; ``smoothing``, an
#: oracle's doubt in each pair; ``neighbour``, the chosen answer of another row of the batch. Further columns that an
#: objective reads (training.pair_columns.COLUMNS) are appended.
PREFERENCES = pa.schema(
    [
        _field("example_id", pa.string()),
        _field("policy", pa.string(), null=True),
        _field("history", _strings),
        _field("history_ratings", _floats, null=True),
        _field("candidates", _strings, null=True),
        _field("chosen", pa.string()),
        _field("rejected", _strings),
        _field("rejected_ids", pa.list_(pa.field("item", _ids)), null=True),
        _field("weight", pa.float32()),
        _field("step", pa.int32()),
        _field("slot", pa.int32()),
        _field("scores", _floats, null=True),
        _field("smoothing", _floats, null=True),
        _field("neighbour", pa.string(), null=True),
    ]
)

#: The same row as token ids, for the workers: those of the ``prompt``, of the ``answers``, the chosen one first, and of
#: the ``neighbour``, EOS included.
TOKENS = pa.schema(
    [
        *(PREFERENCES.field(name) for name in ("example_id", "weight", "step", "slot", "scores", "smoothing")),
        _field("prompt", _ids),
        _field("answers", pa.list_(pa.field("item", _ids))),
        _field("neighbour", _ids, null=True),
    ]
)

#: The answers of a policy to one example: ``texts`` as generated, best first, their token ``ids``, EOS included (null
#: where given answers were scored, or no policy was asked), their log-probabilities, and the ``titles`` of the top-k
#: list that evaluation scores.
PREDICTIONS = pa.schema(
    [
        _field("example_id", pa.string()),
        _field("policy", pa.string()),
        _field("decode", pa.string()),
        _field("target", pa.string()),
        _field("texts", _strings),
        _field("ids", pa.list_(pa.field("item", _ids)), null=True),
        _field("logprobs", _floats),
        _field("titles", _strings),
    ]
)


def extended(schema: pa.Schema, table: pa.Table, columns: Iterable[str]) -> pa.Schema:
    """Return ``schema`` and those of the table's ``columns`` that are not in it, by name."""
    for name in sorted({*columns} & {*table.column_names} - {*schema.names}):
        schema = schema.append(table.schema.field(name))
    return schema


def check(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """Return ``table`` with exactly the columns and types of ``schema``.

    Raises ValueError: a column is missing, has a type that cannot be converted, or holds nulls where none are allowed;
    ``what`` (a table or file name) opens the message.
    """
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
        if not f.nullable and table.column(f.name).null_count:
            raise ValueError(
                f"{what}: column '{f.name}' has {table.column(f.name).null_count} empty values, but must have none."
            )
    return table
