"""SIGINT, SIGTERM and SIGHUP set a flag, and every wait of the main thread looks at it.

Nothing is raised from a handler: an exception amid a wait of ``threading`` leaves its locks in disorder. A thread of
its own reads the signals, so a second one ends the process at once, whatever the main thread computes.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait

import psutil

#: Exit status of a process that was ended by a signal.
EXIT_CODE = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds between two looks at the flag.
_LOOK = 0.2
_received, _announced = threading.Event(), threading.Event()
_go_on = ""


def catch(go_on: str = "the same command goes on at the first unfinished phase") -> None:
    """Set the handlers, in the main thread; ``go_on`` is the rest of the line that the process ends with.

    All are set here: a background shell lets its children ignore SIGINT. Under nohup SIGHUP stays ignored.
    """
    global _go_on
    if not _go_on:
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_receive, args=(read,), name="signals", daemon=True).start()
    _go_on = go_on
    for number in _SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)  # Python's own part writes the number into the pipe


def _receive(pipe: int) -> None:
    while number := os.read(pipe, 1)[0]:
        if number not in _SIGNALS:
            continue
        if _received.is_set():
            announce()
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(EXIT_CODE)
        _received.set()


def announce() -> None:
    """Print, once, that the process was stopped and how to go on."""
    if not _announced.is_set():
        _announced.set()
        os.write(2, f"stopped; {_go_on}\n".encode())


def check() -> None:
    """Raise :class:`KeyboardInterrupt` once a signal has come; in the main thread only, which ends the others."""
    if _received.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def pause(seconds: float) -> None:
    """Sleep; in the main thread a signal ends it with :class:`KeyboardInterrupt`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(_LOOK, left))
    check()


def wait_for(
    futures: Iterable[Future], seconds: float = math.inf, meanwhile: Callable[[], None] = lambda: None
) -> bool:
    """Wait until all futures are done; False if they are not after ``seconds``.

    ``meanwhile`` is called several times a second. Its errors end the wait, as do a signal and the first error of a
    future.
    """
    open_, end = set(futures), time.monotonic() + seconds
    while open_ and (left := end - time.monotonic()) > 0:
        check()
        meanwhile()
        done, open_ = wait(open_, timeout=min(_LOOK, left), return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    check()
    return not open_
