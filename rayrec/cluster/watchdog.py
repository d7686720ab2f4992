"""A limit on the silence of a process elsewhere: a training worker, a generator, a model in training."""

import logging
import time

_log = logging.getLogger(__name__)

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
