"""The titles that each user met, as numbers: Python sets of titles would be larger than the rows."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrec.data.mapped import slices

_TITLE = (1 << 32) - 1


class Met(Mapping[str, frozenset[str]]):
    """Titles that each user met, in histories and targets of the rows (schema.EXAMPLES).

    Memory: 8 bytes for each pair of user and title, and every name once.
    """

    def __init__(self, *tables: pa.Table):
        self._users: dict[str, int] = {}
        titles: dict[str, int] = {}
        self._pairs, new, waiting = np.zeros(0, np.int64), [], 0  # user << 32 | title, ascending
        for some in (some for rows in tables for some in slices(rows)):
            history, user = some["history"].combine_chunks(), _numbers(some["user"].combine_chunks(), self._users)
            of_history = np.repeat(user, pc.call_function("list_value_length", [history]).to_numpy())
            title = _numbers(pa.concat_arrays([history.flatten(), some["target"].combine_chunks()]), titles)
            new.append(np.unique(np.concatenate([of_history, user]) << 32 | title))
            waiting += len(new[-1])
            if waiting > max(1 << 20, len(self._pairs)):  # sorts all pairs a few times only
                self._pairs, new, waiting = np.unique(np.concatenate([self._pairs, *new])), [], 0
        self._pairs = np.unique(np.concatenate([self._pairs, *new]))
        self._titles = list(titles)

    def __getitem__(self, user: str) -> frozenset[str]:
        number = self._users[user]
        own = slice(*np.searchsorted(self._pairs, [number << 32, (number + 1) << 32]))
        return frozenset(self._titles[i] for i in (self._pairs[own] & _TITLE).tolist())

    def __iter__(self) -> Iterator[str]:
        return iter(self._users)

    def __len__(self) -> int:
        return len(self._users)

    @property
    def most(self) -> int:
        """The largest number of titles that a user met."""
        return int(np.bincount(self._pairs >> 32).max(initial=0))


def _numbers(values: pa.Array, known: dict[str, int]) -> np.ndarray:
    """Number each value, (N,) int64; new values are added to ``known``."""
    coded = values.dictionary_encode()
    own = np.array([known.setdefault(value, len(known)) for value in coded.dictionary.to_pylist()], np.int64)
    return own[coded.indices.to_numpy()]
