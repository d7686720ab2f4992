"""Which cluster a run joins, what it has, and what of --runs, --device and --placement follows from it."""

import dataclasses
import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, TypeVar

from rayrec.cluster import devices, reserve
from rayrec.cluster.watchdog import within
from rayrec.config import AnyConfig, BaselinesConfig, Config
from rayrec.runs.storage import Storage

_log = logging.getLogger(__name__)

C = TypeVar("C", Config, BaselinesConfig)

#: Seconds that the head of a cluster may take to let a process join.
_JOIN_SECONDS = 10
#: Seconds that Ray's client may take in all.
_PROBE_SECONDS = 180.0
#: Prints the resources of a cluster as JSON, or the error's name and message. Ray's client of the head itself answers
#: at once where the token is wrong, which `ray.init` tries again for longer than a user waits; the alarm ends the
#: process where the client waits, for minutes, for an answer of something that is no cluster.
_PROBE = """
import json, signal, sys
from collections import Counter
signal.alarm(int(sys.argv[2]))
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo
total = Counter()
try:
    ensure_token_if_auth_enabled(create_token_if_missing=False)  # a client without a token would end the process
    for node in GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values():
        total.update(node.resources_total if node.state == GcsNodeInfo.ALIVE else {})
    print(json.dumps([total, "", ""]))
except Exception as error:
    print(json.dumps([{}, type(error).__name__, getattr(error, "message", str(error))]))
"""


def submitted() -> bool:
    """Whether this process is the entry point of a submitted Ray job, which runs in a copy of the working folder."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def settle_runs(runs: str | None, **others: str | None) -> str:
    """The folder or URL of all runs; ValueError if it or another flag's path is relative in a submitted job."""
    runs = runs or (str(Path.home() / "rayrec-runs") if submitted() else "runs")
    for flag, path in {"runs": runs, **others}.items():
        if submitted() and path and "://" not in path and not Path(path).is_absolute():
            raise ValueError(
                f"--{flag} {path} is relative, but a submitted job runs in a copy of the working folder that is thrown "
                "away. Give an absolute path that every node sees."
            )
    return runs


def settle_paths(config: C) -> C:
    """Fill in where runs are written. Raises ValueError: as in :func:`settle_runs`, or ``--runs`` is no store."""
    runs = settle_runs(config.output.runs, data=config.data.data, json=getattr(config, "json", None))
    Storage(runs).check()
    return dataclasses.replace(config, output=dataclasses.replace(config.output, runs=runs))


def check_address(config: AnyConfig) -> None:
    """Raise ValueError for an address without a cluster: a dashboard's, a silent one, or ``auto`` without one."""
    named = config.placement.address or os.environ.get("RAY_ADDRESS")
    flag = "--address" if config.placement.address else "RAY_ADDRESS"
    if named and named.startswith("http"):
        raise ValueError(
            f"{flag} {named} is a dashboard, wanted HOST:PORT of the cluster itself (`ray start` prints it). To a "
            f"dashboard, submit: ray job submit --address {named} --working-dir . -- python jobs/sprec.py ..."
        )
    if named == "auto" and find_address(config) is None:
        raise ValueError(
            f"{flag} auto: no cluster made by `ray start` runs on this machine, and another driver's private one is "
            "not joined. Give HOST:PORT, start one with `ray start --head`, or leave the address out."
        )
    if named and ":" in named and "://" not in named and not _answers(named):
        raise ValueError(
            f"{flag} {named}: no Ray cluster answers there. Start one with `ray start --head`, or leave the address "
            "out to compute on this machine."
        )


def find_address(config: AnyConfig) -> str | None:
    """The cluster to join: --address, RAY_ADDRESS, or a living one that this user made by ``ray start``.

    None to start one of our own, as ``local`` does. Another driver's private cluster is never joined.
    """
    named = config.placement.address or os.environ.get("RAY_ADDRESS")
    if named and named != "auto":
        return None if named == "local" else named
    # Written by `ray start` only, and left behind when that cluster is killed. Read here: Ray's import takes a second.
    folder = os.environ.get("RAY_TMPDIR") or (sys.platform == "linux" and os.environ.get("TMPDIR")) or "/tmp"
    file = Path(folder, "ray", "ray_current_cluster")
    # Everybody may write there, and a cluster can run code in every process that joins it.
    made = file.read_text().strip() if file.exists() and file.stat().st_uid == os.getuid() else ""
    return made if made and _answers(made) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except (OSError, ValueError):  # ValueError: the port is no number
        return False


def has_gpu(config: AnyConfig) -> bool:
    """Resolve ``--device`` before joining: `auto` takes GPUs if the cluster has any, though its head may have none.

    ValueError: this machine has no GPU or too few for the plan, or a cluster that wants another token.
    """
    import torch

    device, address = config.placement.device, find_address(config)
    found = _resources(address) if address else None
    if device == "gpu" and not torch.cuda.is_available() and address is None:
        why = devices.unusable() or "this machine has no CUDA device"
        raise ValueError(f"--device gpu: {why}. Join a cluster with --address, or take --device cpu.")
    if device == "auto" and address is None and (why := devices.unusable()):
        _log.warning("--device auto takes CPUs: %s.", why)
    there = torch.cuda.is_available() if found is None else found["GPU"] > 0
    gpu = device == "gpu" or (device == "auto" and there)
    here, cards = torch.cuda.device_count(), reserve.cards(settle_placement(config, gpu))
    if gpu and here < cards and address is None:
        lower = "--generators"
        if config.placement.train_workers:  # else only lists are made
            lower = "--train-workers, --generators or --tensor-parallel, add --placement shared"
        raise ValueError(
            f"The plan takes {cards} GPUs, this machine has {here}. Lower {lower}, or join a cluster with --address."
        )
    return gpu


def device_name(gpu: bool) -> str:
    """`cpu`; with ``gpu`` the name of this machine's GPU, or `gpu` where only others have one."""
    import torch

    return (torch.cuda.get_device_name() if torch.cuda.is_available() else "gpu") if gpu else "cpu"


def settle_placement(config: AnyConfig, gpu: bool) -> Any:
    """The settings with ``--placement`` resolved: `auto` is `shared` where a trainer and a generator have one GPU."""
    placement = config.placement
    if placement.placement != "auto":
        return config
    kind: Literal["apart", "shared"] = "apart"
    if gpu and isinstance(config, Config) and not placement.wait_for_resources:
        alone = (placement.train_workers, placement.generators, placement.tensor_parallel) == (1, 1, 1)
        kind = "shared" if alone and placement.max_train_workers is None and _gpus(config) == 1 else "apart"
    return dataclasses.replace(config, placement=dataclasses.replace(placement, placement=kind))


def _gpus(config: AnyConfig) -> float:
    """The GPUs of the cluster that would be joined, or of this machine."""
    import torch

    address = find_address(config)
    found = _resources(address) if address else None
    return torch.cuda.device_count() if found is None else found["GPU"]


def runs_at_once(config: AnyConfig) -> int:
    """For how many runs like this one the cluster has room, by its totals; 1 where there is none to join."""
    address = find_address(config)
    found = _resources(address) if address else None
    if found is None:
        return 1
    gpu = has_gpu(config)
    wanted = _wanted(settle_placement(config, gpu), gpu)
    return max(1, min(int(found[name] // amount) for name, amount in wanted.items()))


@functools.cache
def _resources(address: str) -> Counter[str] | None:
    """The resources of a cluster that is not joined; None without an answer. ValueError: other token, or no cluster."""
    if not _answers(address):  # a Ray client's, or no HOST:PORT
        return None
    # Not joined as the submitted job that this process may be of.
    env = {name: value for name, value in os.environ.items() if name != "RAY_JOB_CONFIG_JSON_ENV_VAR"}
    line = [sys.executable, "-c", _PROBE, address, str(_JOIN_SECONDS)]
    what = f"asking the cluster at {address}"
    probe = within(_PROBE_SECONDS, what, lambda: subprocess.run(line, env=env, capture_output=True, text=True))
    if probe.returncode == -signal.SIGALRM:
        raise ValueError(_no_cluster(address, f"lets nobody join within {_JOIN_SECONDS} s"))
    if not probe.stdout:
        raise ValueError(_no_cluster(address, f"ends Ray's client ({probe.stderr.strip()[-300:]})"))
    found, error, message = json.loads(probe.stdout.splitlines()[-1])
    if error == "AuthenticationError":
        raise ValueError(
            f"The cluster at {address} cannot be joined: {message}. Set RAY_AUTH_MODE=token, and its token in "
            "RAY_AUTH_TOKEN or the path of a file with it in RAY_AUTH_TOKEN_PATH, or take --address local to compute "
            "on this machine alone."
        )
    if error:
        raise ValueError(_no_cluster(address, f"answers with {f'{error}: {message}'.splitlines()[0]!r}"))
    return Counter(found)


def _no_cluster(address: str, how: str) -> str:
    return (
        f"--address (or RAY_ADDRESS) {address}: what listens there {how}, wanted the head of a Ray cluster. Give the "
        "HOST:PORT that `ray start --head` prints, or leave the address out to compute on this machine."
    )


def _wanted(config: AnyConfig, gpu: bool) -> Counter[str]:
    """CPUs and GPUs that trainers and generators take in all."""
    generators = reserve.generator_bundles(config, gpu) * config.placement.generators
    found = reserve.total([*reserve.trainer_bundles(config, gpu), *generators])
    return found | (Counter[str](GPU=reserve.cards(config)) if gpu else Counter[str]())
