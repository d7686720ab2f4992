"""Limits in time: on the silence of a process elsewhere, such as a training worker, and on a call of Ray."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from rayrec import signals
from rayrec.errors import Stopped

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds of silence after which a warning is logged.
WARN_AFTER = 60.0


class Watchdog:
    """Counts the seconds since the last sign of life; ``who`` is the subject of the log line ``WHO for 60 s``.

    ``who`` and ``patience`` (seconds) may change while it runs. A silence is logged before patience is over, at half of
    it at the latest.
    """

    def __init__(self, who: str, patience: float, first_warning: float = WARN_AFTER):
        self.who, self.patience, self._first = who, patience, first_warning
        self.beat()

    def beat(self) -> None:
        """Note a sign of life: the silence, and the warnings of it, start again."""
        self._since, self._warn_at = time.monotonic(), min(self._first, self.patience / 2)

    @property
    def silent(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._since

    def check(self) -> bool:
        """Whether patience is over; before that, warn after ``first_warning`` seconds and at doubling intervals."""
        silent = self.silent
        if silent > self.patience:
            return True
        if silent > self._warn_at:
            _log.info("%s for %.0f s; given up after %.0f s", self.who, silent, self.patience)
            self._warn_at *= 2
        return False


def within(seconds: float, what: str, work: Callable[[], T]) -> T:
    """Return the result of ``work``, or raise Stopped after so many seconds; a signal ends the wait too."""
    future = Future[T]()

    def do() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        threading.Event().wait()  # the kernel ends the processes of Ray with the thread that started them

    threading.Thread(target=do, name=what, daemon=True).start()
    if not signals.wait_for([future], seconds):
        raise Stopped(f"{what} took longer than {seconds:.0f} s")
    return future.result()
