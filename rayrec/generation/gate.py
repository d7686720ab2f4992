"""Turns of threads at one engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Gate:
    """Lets threads in one after the other, in the order in which they came, and those of one key together."""

    def __init__(self) -> None:
        self._changed, self._waiting = threading.Condition(), deque[object]()
        self._inside, self._key = 0, None

    @contextmanager
    def enter(self, key: Hashable = None) -> Iterator[None]:
        """Wait for the turn of ``key``; None is alone."""
        me = object()

        def mine() -> bool:
            return self._waiting[0] is me and (not self._inside or (key is not None and key == self._key))

        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(mine)
            self._waiting.popleft()
            self._inside, self._key = self._inside + 1, key
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()
