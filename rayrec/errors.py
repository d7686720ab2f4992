"""Errors that users see, beside ValueError."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Stopped(RuntimeError):
    """A run cannot go on by itself; the message says what died, how often, or what was waited for."""
