"""The histories of known users, for requests that name one."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pyarrow as pa

from rayrec.recommend import histories, places
from rayrec.serving.settings import ServeConfig

_log = logging.getLogger(__name__)


class Users:
    """A table of histories in memory; the last row of a user counts."""

    def __init__(self, tables: Iterable[pa.Table]):
        whole = pa.concat_tables([histories.HISTORIES.empty_table(), *tables])
        good = whole.filter(whole["error"].is_null())
        if len(good) < len(whole):
            _log.warning("%d bad rows of the histories are left out.", len(whole) - len(good))
        self._histories = good["history"].combine_chunks()
        self._rows = {user: row for row, user in enumerate(good["user"].to_pylist())}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, user: str) -> list[str]:
        """Return the titles of a user, oldest first; none for one who is not in the table."""
        row = self._rows.get(user)
        return [] if row is None else self._histories[row].as_py()


def read_users(config: ServeConfig) -> Users | None:
    """Return the histories that the settings name, else those of the policy's run; None where there are none.

    Raises:
        ValueError: what the settings name cannot be read.
    """
    if config.data and config.histories:
        raise ValueError("--data and --histories both name users. Give one of them.")
    if config.histories:
        return Users(histories.from_file(config.histories))
    place = places.find(config.policy)
    if config.data:
        return Users(histories.from_logs(*place.data(config.source, config.data, config.columns, config.date_order)))
    if not place.settings:
        return None
    try:
        return Users(histories.from_logs(*place.data()))
    except ValueError as error:
        _log.warning("No request can name a user: %s", error)
        return None
