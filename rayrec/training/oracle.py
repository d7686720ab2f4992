"""The oracle: a SASRec that doubts pairs (RosePO) and guides beams (D3), trained in a process of its own."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from rayrec.cluster import connect
from rayrec.config import deciding
from rayrec.errors import Stopped
from rayrec.lanes import Shared
from rayrec.models import sequential
from rayrec.runs import cache
from rayrec.runs.storage import Storage

_log = logging.getLogger(__name__)


#: Seconds between two questions, and of silence until it is told.
_ASK, _WORD = 2.0, 30.0


class Oracle:
    """Actor that trains the SASRec, on whatever node, and answers meanwhile."""

    def __init__(self) -> None:
        self._passes = 0

    def fit(self, storage: Storage, folder: Path, train: Any, valid: Any, catalogue: Any, seed: int) -> dict:
        """Train and save it; returns its validation."""
        import torch

        torch.set_num_threads(1)  # whatever the node's environment says: it decides the order of sums
        here = storage.here(folder)
        here.mkdir(parents=True, exist_ok=True)
        report = sequential.fit_sasrec(train, valid, catalogue, seed, str(here), self._count)
        storage.upload(here)
        return report

    def _count(self, *_: Any) -> None:
        self._passes += 1

    def passes(self) -> int:
        """How many passes through the model were made: more and more while it is trained."""
        return self._passes


def train_oracle(shared: Shared, folder: Path, facts: dict) -> dict:
    """Train it on the training split into ``folder``, or take a shared one; returns its metrics.

    Raises:
        Stopped: its process died more often than allowed, or was silent for ``wait_seconds``.
    """
    if not shared.config.output.share:
        return _fit(shared, folder)
    # The seed is the only setting that its training is given; those of the data decide what it reads.
    data = {name: value for name, value in deciding(shared.config).items() if name.startswith("data.")}
    key = {"phase": "oracle", "settings": data, "data": shared.data.content_hash, "processor": cache.processor()}
    return cache.share_phase(shared.run.root, folder, key, facts, lambda: _fit(shared, folder))


def _fit(shared: Shared, folder: Path) -> dict:
    import ray
    from ray.exceptions import RayTaskError

    data, storage, placement = shared.data, shared.run.storage, shared.config.placement
    patience, deaths = placement.wait_seconds, placement.max_deaths
    # It takes no CPU of Ray's count: Ray Data would wait for it.
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": deaths, "max_task_retries": deaths}
    actor: Any = ray.remote(Oracle).options(max_concurrency=2, **options).remote()
    made = actor.fit.remote(storage, folder, data.train, data.valid, data.catalogue, shared.config.data.seed)
    try:
        _listen(actor, made, patience)
        report: dict = ray.get(made)
    except connect.deaths() as error:
        words = f"00/oracle: the process that trains it died more than {deaths} times (--max-deaths)"
        raise Stopped(f"{words}: {(str(error).strip().splitlines() or [''])[-1]}") from error
    except RayTaskError as error:
        # What Ray hands on has no errno, by which trouble with a disk is known.
        raise error.cause if isinstance(error.cause, OSError | Stopped) else error from error
    storage.download_all(folder)
    return {"records": [{"kind": "oracle", "phase": "00/oracle", "iteration": 0, **report}]}


def _listen(actor: Any, made: Any, patience: float) -> None:
    """Wait until the model is made, as long as it is worked on.

    Raises:
        Stopped: no pass was made, or no answer given, for ``patience`` seconds.
    """
    import ray

    known, heard, word = -1, time.monotonic(), _WORD
    while not ray.wait([made], timeout=_ASK)[0]:
        answer = actor.passes.remote()
        if ray.wait([answer], timeout=_ASK)[0] and (passes := ray.get(answer)) != known:
            known, heard, word = passes, time.monotonic(), _WORD
        silent = time.monotonic() - heard
        if silent > patience:
            raise Stopped(f"00/oracle: the process that trains it has done nothing for {silent:.0f} s")
        if silent > word:
            _log.info("00/oracle: the process that trains it has done nothing for %.0f s", silent)
            word *= 2
