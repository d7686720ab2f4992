"""The lists that were answered last, until it is known what was chosen after them."""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class Chosen(NamedTuple):
    """An outcome: the policy of its list, and whether the list held what was chosen."""

    policy: str
    hit: bool


class _Shown(NamedTuple):
    policy: str
    titles: array
    """Hashes of the titles, which take a tenth of their memory."""
    user: str


class Outcomes:
    """The last ``size`` lists by their ids, and the last list of each user; a list has one outcome."""

    def __init__(self, size: int):
        self.size = size
        self._lists: OrderedDict[str, _Shown] = OrderedDict()
        self._last: dict[str, str] = {}

    def shown(self, policy: str, titles: Sequence[str], user: str | int | None) -> str:
        """Keep a list, and forget the oldest where there are more than ``size``; returns its id."""
        name, own = secrets.token_hex(8), "" if user is None else str(user)
        self._lists[name] = _Shown(policy, array("q", map(hash, titles)), own)
        if own:
            self._last[own] = name
        if len(self._lists) > self.size:
            self._take(next(iter(self._lists)))
        return name

    def chosen(self, title: str, name: str | None, user: str | int | None) -> Chosen | None:
        """Return the outcome of the list ``name``, or of the user's last list; None for one that is not known."""
        found = self._take(self._last.get(str(user), "") if name is None else name)
        return None if found is None else Chosen(found.policy, hash(title) in found.titles)

    def _take(self, name: str) -> _Shown | None:
        found = self._lists.pop(name, None)
        if found is not None and self._last.get(found.user) == name:
            del self._last[found.user]
        return found
