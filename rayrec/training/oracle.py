"""The oracle: a SASRec that smooths pairs (RosePO) and guides beams (D3), trained in an actor of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayrec.cluster import connect
from rayrec.cluster.watchdog import Watchdog
from rayrec.deciding import deciding
from rayrec.errors import Stopped
from rayrec.lanes import Shared
from rayrec.models import sequential
from rayrec.runs import cache
from rayrec.runs.storage import Storage

#: Seconds between two looks at the progress of the training.
_INTERVAL = 2.0


class Oracle:
    """Actor that trains the SASRec on any node, and answers meanwhile."""

    def __init__(self) -> None:
        self._passes = 0

    def fit(self, storage: Storage, folder: Path, train: Any, valid: Any, catalogue: Any, seed: int) -> dict:
        """Train and save it; returns its validation."""
        import torch

        torch.set_num_threads(1)  # whatever the node's environment has: it decides the order of sums
        here = storage.here(folder)
        here.mkdir(parents=True, exist_ok=True)
        report = sequential.fit_sasrec(train, valid, catalogue, seed, str(here), self._count)
        storage.upload(here)
        return report

    def _count(self, *_: Any) -> None:
        self._passes += 1

    def passes(self) -> int:
        """Passes through the model so far: the heartbeat of its training."""
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
    deaths = placement.max_deaths
    # No CPU of Ray's count: Ray Data would wait for it.
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": deaths, "max_task_retries": deaths}
    actor: Any = ray.remote(Oracle).options(max_concurrency=2, **options).remote()
    made = actor.fit.remote(storage, folder, data.train, data.valid, data.catalogue, shared.config.data.seed)
    try:
        wait_for_passes(actor, made, placement.wait_seconds)
        report: dict = ray.get(made)
    except connect.deaths() as error:
        died = f"00/oracle: the process that trains it died more than {deaths} times (--max-deaths)"
        raise Stopped(f"{died}: {(str(error).strip().splitlines() or [''])[-1]}") from error
    except RayTaskError as error:
        # Ray's own error has no errno, by which trouble with a disk is known.
        raise error.cause if isinstance(error.cause, OSError | Stopped) else error from error
    storage.download_all(folder)
    return {"records": [{"kind": "oracle", "phase": "00/oracle", "iteration": 0, **report}]}


def wait_for_passes(actor: Any, made: Any, patience: float) -> None:
    """Wait until the model is ``made``, as long as its passes go on.

    Raises:
        Stopped: no pass was made, or no answer given, for ``patience`` seconds.
    """
    import ray

    known, watchdog = -1, Watchdog("00/oracle: the process that trains it has done nothing", patience)
    while not ray.wait([made], timeout=_INTERVAL)[0]:
        answer = actor.passes.remote()
        if ray.wait([answer], timeout=_INTERVAL)[0] and (passes := ray.get(answer)) != known:
            known = passes
            watchdog.beat()
        if watchdog.check():
            raise Stopped(f"{watchdog.who} for {watchdog.silent:.0f} s")
