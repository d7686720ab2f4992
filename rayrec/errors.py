"""Errors that users see, beside ValueError."""


class Stopped(RuntimeError):
    """The run ends, and the same command can resume it; the message has the process, its deaths, or the timeout."""
