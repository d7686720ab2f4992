"""One driver writes a run, and says so beside it: on another machine a second one is told, and a dead one succeeded.

Machines do not agree on the time, so a driver is alive whose sign changes while another one looks at it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from rayrec.errors import Stopped
from rayrec.runs.manifest import read_json, write_json
from rayrec.runs.processes import machine
from rayrec.runs.storage import DRIVER, Storage

_log = logging.getLogger(__name__)


#: Seconds between two signs of life, and how long none may come before a driver on another machine counts as dead.
BEAT, SILENCE = 5.0, 20.0


class Lease:
    """The right to write a run; held inside ``with``."""

    def __init__(self, storage: Storage, root: Path):
        self.storage, self.file, self._lost = storage, root / DRIVER, ""
        self._me = {"host": socket.gethostname(), "machine": machine(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        self._over, self._thread = threading.Event(), threading.Thread(target=self._beat, name="lease", daemon=True)

    def check(self) -> None:
        """Wait until it is plain that no driver on another machine works on the run; this one's are known by their ids.

        Raises:
            ValueError: one does.
        """
        first = self._read()
        if not first or first["machine"] == self._me["machine"]:
            return
        whose, end = f"process {first['pid']} on {first['host']}", time.monotonic() + SILENCE
        _log.info("run: was written by %s; waiting %.0f s for a sign of its life", whose, SILENCE)
        while time.monotonic() < end:
            time.sleep(min(1.0, SILENCE / 10))
            if (now := self._read()) and now != first:
                raise ValueError(
                    f"{self.storage.name(self.file.parent)} is being written by {whose}. Wait for its end, stop it, or "
                    "take another --name."
                )

    def __enter__(self) -> None:
        """Say that this driver has the run, and go on saying it."""
        self._say(0)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        """Give the run back."""
        if self._thread.is_alive():
            self._over.set()
            self._thread.join(timeout=BEAT)
            with contextlib.suppress(OSError, Stopped):
                self.file.unlink(missing_ok=True)
                self.storage.remove(self.file)

    def check_held(self) -> None:
        """Raise :class:`Stopped` once another driver has the run."""
        if self._lost:
            raise Stopped(self._lost)

    def _read(self) -> dict:
        """The last sign of life; none if it cannot be read."""
        with contextlib.suppress(OSError, Stopped, ValueError):
            self.storage.bring(self.file)
            found = read_json(self.file)
            if isinstance(found, dict) and {*self._me, "beat"} <= found.keys():
                return found
        return {}

    def _say(self, beat: int) -> None:
        with contextlib.suppress(OSError, Stopped):  # a storage that takes nothing stops the run elsewhere
            write_json(self.file, {**self._me, "beat": beat})
            self.storage.keep(self.file)

    def _beat(self) -> None:
        beat = 0
        while not self._over.wait(BEAT):
            if (found := self._read()) and found["token"] != self._me["token"]:
                whose = f"process {found['pid']} on {found['host']}"
                self._lost = f"{self.storage.name(self.file.parent)} is being written by {whose} now."
                return
            self._say(beat := beat + 1)
