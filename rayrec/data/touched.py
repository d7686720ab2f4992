"""The titles that each user touched, as numbers: Python sets of titles would be larger than the rows."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from rayrec.data.mapped import slices
from rayrec.data.text import numbered

_TITLE = (1 << 32) - 1


class Touched(Mapping[str, frozenset[str]]):
    """By user, titles in histories and targets (schema.EXAMPLES), or of interactions (schema.INTERACTIONS).

    A pair takes 8 bytes, and every name is kept once.
    """

    def __init__(self, *tables: pa.Table):
        self._users: dict[str, int] = {}
        titles: dict[str, int] = {}
        self._pairs, new, waiting = np.zeros(0, np.int64), [], 0  # user << 32 | title, ascending
        for some in (some for rows in tables for some in slices(rows)):
            user = owner = numbered(some["user"], self._users, str)
            if "title" in some.column_names:
                shown = some["title"]
            else:
                history = some["history"].combine_chunks()
                owner = np.concatenate([np.repeat(user, history.value_lengths().to_numpy()), user])
                shown = pa.chunked_array([history.flatten(), *some["target"].chunks])
            new.append(np.unique(owner << 32 | numbered(shown, titles, str)))
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
        """The largest number of titles that a user touched."""
        return int(np.bincount(self._pairs >> 32).max(initial=0))
