"""Training rows: the examples of a phase, joined with their rejected answers, in order and in global batches.

Every row has a ``step`` and a ``slot`` in the global batch; both are independent of the number of workers.
"""

from collections.abc import Collection, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data import schema
from rayrec.data.mapped import CHUNK, array, ascending, each, mapped, slices, take
from rayrec.data.schema import places, with_column
from rayrec.seeds import seed_of

#: Columns that only some objectives read.
_OPTIONAL = ("scores", "smoothing", "neighbour")


def draw(train: pa.Table, start: int, count: int, seed: int, name: str) -> pa.Table:
    """Return rows ``start`` to ``start + count`` of an endless sequence of permutations of ``train``, by ``name``."""
    chosen, taken = array(count), 0
    while taken < count:
        turn, offset = divmod(start + taken, len(train))
        some = _permutation(len(train), seed, name, turn)[offset : offset + count - taken]
        chosen[taken : taken + len(some)] = some
        taken += len(some)
    return take(train, chosen)


def sft_rows(examples: pa.Table, batch: int, epochs: int, seed: int, name: str) -> pa.Table:
    """Return the rows (schema.PREFERENCES, nothing rejected) of an SFT phase: every example once per epoch."""

    def base(some: pa.Table) -> pa.Table:
        nothing = pa.array([[]] * len(some), pa.list_(pa.null()))
        return _base(some, pa.nulls(len(some), pa.string()), nothing, pa.nulls(len(some)))

    return arrange(each(examples, base), batch, epochs, seed, name)


def pairs(rows: pa.Table, negatives: Iterable[pa.Table]) -> pa.Table:
    """Join a draw (schema.EXAMPLES with ``number``, examples may repeat) with its rejected answers (schema.REJECTED).

    This is :func:`pair_up` for tables larger than memory. ValueError: the rows of an example are apart.
    """
    rejected = mapped(negatives, schema.REJECTED)
    first, count = _runs(rejected["number"], _size(rows, rejected))

    def joined(some: pa.Table) -> pa.Table:
        number = np.unique(some["number"].to_numpy())
        number = number[np.argsort(first[number])]
        length = count[number].astype(np.int64)
        place = np.repeat(first[number] - np.cumsum(length) + length, length) + np.arange(length.sum())
        return pair_up(some, take(rejected, place))

    return each(rows, joined)


def _size(*tables: pa.Table) -> int:
    """Return one more than the largest ``number``."""
    largest = (pc.call_function("max", [table["number"]]).as_py() for table in tables)
    return 1 + max((number for number in largest if number is not None), default=-1)


def _runs(numbers: pa.ChunkedArray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each number and the count of its rows, both (size,) int32."""
    first, count, place, last, runs = array(size), array(size), 0, -1, 0
    for chunk in numbers.chunks:
        number = chunk.to_numpy()
        starts = np.flatnonzero(np.diff(number, prepend=last))
        first[number[starts]] = place + starts
        np.add.at(count, number, 1)
        place, last, runs = place + len(number), number[-1], runs + len(starts)
    if runs > np.count_nonzero(count):
        raise ValueError("The rejected answers of an example are apart in their files. Remove the phase, and resume.")
    return first, count


def with_numbers(negatives: pa.Table, examples: pa.Table) -> pa.Table:
    """Rejected answers (schema.NEGATIVES) with the ``number`` of their examples (schema.REJECTED)."""
    place = pc.call_function("index_in", [negatives["example_id"]], pc.SetLookupOptions(examples["example_id"]))
    return schema.check(negatives.append_column("number", examples["number"].take(place)), schema.REJECTED, "negatives")


def pair_up(examples: pa.Table, negatives: pa.Table) -> pa.Table:
    """Join examples with their rejected answers in the order of ``k``, without examples that have none."""
    ids = negatives["example_id"].unique()
    owner = places(negatives["example_id"], ids)
    order = np.lexsort((negatives["k"].to_numpy(), owner))
    ends = np.cumsum(np.bincount(owner, minlength=len(ids)))
    starts = pa.array(np.concatenate([[0], ends]), pa.int32())
    lists = [pa.ListArray.from_arrays(starts, negatives[name].combine_chunks().take(order)) for name in ("text", "ids")]
    place = places(examples["example_id"], ids)
    kept = np.flatnonzero(place >= 0)
    of_example = place[kept]
    policy = negatives["policy"].take(order[ends[of_example] - 1])
    return _base(examples.take(kept), policy, *(one.take(of_example) for one in lists))


def distinct(rows: pa.Table) -> pa.Table:
    """Keep the first row of every ``number``: a draw longer than the split holds some examples twice."""
    seen = array(_size(rows), bool)
    for some in slices(rows):
        seen[some["number"].to_numpy()] = True
    if np.count_nonzero(seen) == len(rows):
        return rows
    _, first = np.unique(rows["number"].to_numpy(), return_index=True)
    return take(rows, np.sort(first))


def with_neighbours(rows: pa.Table) -> pa.Table:
    """Fill ``neighbour`` with the chosen answer of the next row of the global batch, in a circle without padding."""
    real = np.flatnonzero(rows["weight"].to_numpy())
    step = rows["step"].to_numpy()[real]
    starts = np.flatnonzero(np.diff(step, prepend=-1))
    sizes = np.diff(starts, append=len(real))
    place = np.arange(len(real)) - np.repeat(starts, sizes)
    after = real[np.repeat(starts, sizes) + (place + 1) % np.repeat(sizes, sizes)]
    next_to = np.zeros(len(rows), np.int64)
    next_to[real] = after
    alone = np.ones(len(rows), bool)
    alone[real] = after == real
    chosen = take(rows.select(["chosen"]), next_to)["chosen"]
    names = pc.call_function("if_else", [pa.array(alone), pa.scalar(None, pa.string()), chosen])
    return rows.set_column(rows.column_names.index("neighbour"), "neighbour", names)


def _base(examples: pa.Table, policy: pa.Array, rejected: pa.Array, ids: pa.Array) -> pa.Table:
    """Rows of schema.PREFERENCES before their order; the weight is 1 without a column ``weight``."""
    own = ("example_id", "history", "history_ratings", "candidates", "weight", "number")
    columns = {"weight": pa.array(np.ones(len(examples), np.float32))}
    columns |= {name: examples.column(name) for name in own if name in examples.column_names}
    columns |= {name: pa.nulls(len(examples), schema.PREFERENCES.field(name).type) for name in _OPTIONAL}
    columns |= {"policy": policy, "chosen": examples.column("target")}
    columns["rejected"] = rejected.cast(schema.PREFERENCES.field("rejected").type)
    columns["rejected_ids"] = ids.cast(schema.PREFERENCES.field("rejected_ids").type)
    return pa.table(columns)


def arrange(table: pa.Table, batch: int, epochs: int, seed: int, name: str, columns: Collection[str] = ()) -> pa.Table:
    """Shuffle per epoch, fill the last global batch with rows of weight 0, and number steps and slots.

    Rows have schema.PREFERENCES, and those of ``columns`` that are there and not in it. Raises ValueError: there is no
    row.
    """
    if not len(table):
        raise ValueError(
            f"{name}: there is no row to train on. Draw more rows, or keep pairs with --equal-target next."
        )
    real = epochs * len(table)
    order = array(real + -real % batch)
    for epoch, start in enumerate(range(0, real, len(table))):
        order[start : start + len(table)] = _permutation(len(table), seed, name, epoch)
    order[real:] = order[real - 1]
    own = schema.extended(schema.PREFERENCES, table, columns)

    def arranged(start: int) -> pa.Table:
        some = take(table, order[start : start + CHUNK])
        place = np.arange(start, start + len(some))
        weight = np.where(place < real, some["weight"].to_numpy(), np.float32(0))
        some = with_column(some, "weight", weight).append_column("step", pa.array(place // batch, pa.int32()))
        return schema.check(some.append_column("slot", pa.array(place % batch, pa.int32())), own, name)

    return mapped(map(arranged, range(0, len(order), CHUNK)), own)


def _permutation(length: int, seed: int, name: str, turn: int) -> np.ndarray:
    """Return 0 to ``length`` − 1 in random order."""
    order = ascending(length)
    np.random.default_rng(seed_of(seed, name, turn)).shuffle(order)
    return order
