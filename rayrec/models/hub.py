"""The model hub, where it can be reached; where it cannot, its cache on this machine, without minutes of retries."""

from __future__ import annotations

import logging
import os
import re
import threading
from functools import cache
from pathlib import Path

_log = logging.getLogger(__name__)
#: Seconds that the hub has to answer.
SECONDS = 8.0


def is_id(model: str) -> bool:
    """Whether a name that is no folder here can be one of the hub, such as ``org/name``."""
    return bool(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model)) and not Path(model).expanduser().exists()


def settle(model: str) -> None:
    """Take the model of a hub id from the cache alone, in this process and those that it starts, if the hub is silent.

    Raises:
        ValueError: the hub is silent and the cache does not have the model; with the two ways out.
    """
    if not is_id(model) or _answers():
        return
    from huggingface_hub import constants, try_to_load_from_cache

    switched = constants.HF_HUB_OFFLINE
    os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE = "1", True
    why = "HF_HUB_OFFLINE is set" if switched else f"{constants.ENDPOINT} does not answer within {SECONDS:.0f} s"
    if not isinstance(try_to_load_from_cache(model, "config.json"), str):
        raise ValueError(
            f"model {model}: no such folder here, {why}, and the hub's cache {constants.HF_HUB_CACHE} does not have "
            f"it. Two ways out: on a machine with a network type `hf download {model} --local-dir FOLDER`, copy FOLDER "
            "here and name it; or copy that machine's cache here and set HF_HOME to the folder above `hub`."
        )
    _log.info("model %s: %s; its copy in the hub's cache is taken", model, why)


@cache
def _answers() -> bool:
    """Whether the hub answers at all. A thread asks, since a name server may be silent for longer than a socket."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=SECONDS)
        except Exception as error:  # of whatever HTTP library the hub's client has
            _log.debug("the hub: %s", error)
        else:
            answered.set()

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answered.is_set()
