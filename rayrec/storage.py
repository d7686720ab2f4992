"""Where runs are kept: a folder that every node sees, or an object store with a copy on every node.

``--runs s3://…`` (gs://, file://: what pyarrow opens) keeps a run in the store. Every node works on a copy of its own;
the store is the truth, so any machine goes on where another one died. A folder is finished once its manifest ``DONE``
is up, which goes last; a copy is checked against it. For a plain folder nothing is copied.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from rayrec.folders import MANIFEST, parse_manifest, sha256
from rayrec.runs import Stopped

T = TypeVar("T")

#: Tries, the first pause between them, and how long they go on in all; seconds. A client that hears nothing takes a
#: minute and a half for one.
_TRIES, _PAUSE, _PATIENCE = 5, 0.5, 90.0
_CHUNK = 2**24
#: Folder of a run that Ray Train writes into.
RAY_TRAIN = ".ray_train"
#: What a copy holds besides the run's files.
_OWN = (".processes.json", RAY_TRAIN)


class Storage:
    """The folder of ``--runs``, wherever it is; can be pickled and used on any node."""

    def __init__(self, runs: str):
        self.url = runs.rstrip("/") if "://" in runs else ""
        self.root = _copy_of(self.url) if self.url else Path(runs).absolute()
        """Where the driver has it."""

    def check(self) -> None:
        """Refuse an address that is no store's.

        Raises:
            ValueError: pyarrow knows no such store, or the address holds a secret.
        """
        if "@" in self.url:
            raise ValueError(
                "--runs has a user or a key in its address, and would be written down with it. Give keys in the "
                "environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role."
            )
        try:
            _ = self.store if self.url else None
        except (ValueError, OSError, NotImplementedError) as error:
            raise ValueError(
                f"--runs {self.url}: {error}. Name a folder, or a store as s3://BUCKET/FOLDER, gs:// or file://."
            ) from error

    @cached_property
    def store(self) -> tuple[Any, str]:
        """The pyarrow filesystem, and the folder in it."""
        from pyarrow.fs import FileSystem

        return FileSystem.from_uri(self.url)

    def name(self, path: Path) -> str:
        """How people call a path of the driver."""
        return f"{self.url}/{path.relative_to(self.root).as_posix()}" if self.url else str(path)

    def here(self, path: str | Path) -> Path:
        """Where this node has, or is to have, what the driver has at ``path``."""
        path = Path(path)
        if self.url and path.is_relative_to(self.root):
            return _copy_of(self.url) / path.relative_to(self.root)
        return path

    def keep(self, path: Path, there: bool = False) -> None:
        """Put a file of this node, or a folder, into the store; returns when it is there.

        ``there``: what the store has of the folder is the same already, put by another node.

        Raises:
            Stopped: the store takes nothing, in several tries.
        """
        if not self.url:
            return
        known = set(self._listed(path)) if there else set()
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        files = [file for file in files if file not in known]
        done = [file for file in files if file.name == MANIFEST]
        for file in done:  # old promises do not hold for new files
            self.remove(file)
        for file in [*(file for file in files if file not in done), *done]:
            self._try(f"writing {file.name}", self._copy_up, file)

    def fetch(self, path: str | Path) -> Path:
        """Bring what the driver calls ``path`` to this node, a finished folder or one inside it; returns where it is.

        Files that are here already, with the hashes of the manifest, are left. New ones take the room of weights that
        the driver has pruned since.

        Raises:
            Stopped: the store gives nothing, in several tries.
        """
        here = self.here(path)
        if not self.url or not here.is_relative_to(_copy_of(self.url)):
            return here
        for folder in (here, here.parent):
            if (manifest := self._manifest(folder)) is not None:
                sums = {
                    folder / e["name"]: e["sha256"] for e in manifest["files"] if e["name"] not in manifest["pruned"]
                }
                wanted = [file for file in sums if file.is_relative_to(here)]
                missing = [file for file in wanted if not (file.is_file() and sha256(file) == sums[file])]
                if missing:
                    self._make_room(here)
                for file in missing:
                    self.bring(file)
                if folder == here:
                    self.bring(folder / MANIFEST)
                return here
        shutil.rmtree(here, ignore_errors=True)  # left here by a death, before the store had all of it
        return here

    def _make_room(self, here: Path) -> None:
        """Remove this node's copies of weights that are pruned in the store, of the run that ``here`` is in."""
        root = _copy_of(self.url)
        run = root / here.relative_to(root).parts[0]
        for folder in {run.joinpath(*file.relative_to(run).parts[:2]) for file in run.rglob("*.safetensors")}:
            for name in (self._manifest(folder) or {"pruned": []})["pruned"]:
                (folder / name).unlink(missing_ok=True)

    def gather(self, folder: Path) -> None:
        """Bring the files that other nodes have put into a folder of an unfinished phase."""
        for file in self._listed(folder):
            if not file.exists():
                self.bring(file)

    def pull(self, run: Path) -> None:
        """Make the driver's copy of a run what the store has: what is finished there, and nothing else.

        Raises:
            ValueError: the store cannot be read; the message says which, and why.
        """
        if not self.url:
            return
        try:
            known = [file for file in self._listed(run, tries=1) if file.relative_to(run).parts[0] not in _OWN]
            folders = [file.parent for file in known if file.name == MANIFEST]
            loose = [file for file in known if len(file.relative_to(run).parts) <= 2]
            kept = set(loose)
            for file in loose:
                self.bring(file)
            for folder in folders:
                manifest = self._manifest(folder)
                if manifest is not None:
                    self.fetch(folder)
                    names = {entry["name"] for entry in manifest["files"]} - {*manifest["pruned"]}
                    kept |= {folder / MANIFEST, *(folder / name for name in names)}
        except Stopped as error:
            raise ValueError(f"--runs {self.url}: {error}") from error
        for file in [p for p in run.rglob("*") if p.is_file()]:
            if file not in kept and file.relative_to(run).parts[0] not in _OWN:
                file.unlink()

    def for_ray_data(self, file: Path) -> dict[str, Any]:
        """How Ray Data's tasks, on any node, read a file of the driver that is kept."""
        return {"paths": self._at(file), "filesystem": self.store[0]} if self.url else {"paths": str(file)}

    def for_ray_train(self, run: Path) -> dict[str, Any]:
        """Where Ray Train writes down its own state of a run."""
        folder = run / RAY_TRAIN
        if self.url:
            return {"storage_path": self._at(folder), "storage_filesystem": self.store[0]}
        return {"storage_path": str(folder)}

    def remove(self, path: Path) -> None:
        """Remove a file of this node, or a folder, from the store."""
        if not self.url:
            return

        def drop(at: str) -> None:
            from pyarrow.fs import FileType

            found = self.store[0].get_file_info(at).type
            if found == FileType.File:
                self.store[0].delete_file(at)
            elif found == FileType.Directory:
                self.store[0].delete_dir(at)

        self._try(f"removing {path.name}", drop, self._at(path))

    def clear(self, folder: Path, but: str) -> None:
        """Remove what an unfinished phase has left in the store, but for the folder ``but`` in it."""
        for file in self._listed(folder):
            if file.relative_to(folder).parts[0] != but:
                self.remove(file)

    def _at(self, path: Path) -> str:
        return f"{self.store[1]}/{path.relative_to(_copy_of(self.url)).as_posix()}"

    def _listed(self, folder: Path, tries: int = _TRIES) -> list[Path]:
        """Where this node has, or would have, the store's files of a folder."""
        from pyarrow.fs import FileSelector

        if not self.url:
            return []
        at = self._at(folder)
        selector = FileSelector(at, recursive=True, allow_not_found=True)
        found = self._try(f"reading {folder.name}", self.store[0].get_file_info, selector, tries)
        names = [info.path[len(at) + 1 :] for info in found if info.is_file]
        return [folder / name for name in names if ".." not in PurePosixPath(name).parts]

    def _manifest(self, folder: Path) -> dict[str, Any] | None:
        """The store's manifest of a finished folder; None if there is none that can be read."""

        def read(at: str) -> bytes:
            with self.store[0].open_input_stream(at) as stream:
                return stream.read()

        try:
            return parse_manifest(self._try(f"reading {folder.name}", read, self._at(folder / MANIFEST)))
        except (FileNotFoundError, ValueError):
            return None

    def _copy_up(self, file: Path) -> None:
        store, at = self.store[0], self._at(file)
        if store.type_name == "local":
            store.create_dir(str(PurePosixPath(at).parent), recursive=True)
        with file.open("rb") as source, store.open_output_stream(at) as target:
            shutil.copyfileobj(source, target, _CHUNK)

    def bring(self, file: Path) -> None:
        """Copy a file here, whole or not at all: others on this node may read it. One that is gone is left out."""
        if not self.url:
            return

        def copy(at: str) -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
            try:
                with self.store[0].open_input_stream(at) as source, partial.open("wb") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
                os.replace(partial, file)
            finally:
                partial.unlink(missing_ok=True)

        try:
            self._try(f"reading {file.name}", copy, self._at(file))
        except FileNotFoundError:  # a damaged store: whoever checks the folder will miss it
            file.unlink(missing_ok=True)

    def _try(self, what: str, call: Callable[[Any], T], value: Any, tries: int = _TRIES) -> T:
        """``call(value)``, again after a growing pause when the store fails.

        Raises:
            FileNotFoundError: there is no such file; that is no failure of the store.
            Stopped: it failed as often as is allowed.
        """
        begun = time.monotonic()
        for number in itertools.count(1):
            try:
                return call(value)
            except FileNotFoundError:
                raise
            except OSError as error:
                seconds = time.monotonic() - begun
                if number >= tries or seconds > _PATIENCE:
                    raise Stopped(f"{what} failed {number} times in {seconds:.0f} s: {error}") from error
                time.sleep(_PAUSE * 2.0 ** (number - 1))
        raise AssertionError


def _copy_of(url: str) -> Path:
    """Where this node keeps its copies of a store's runs."""
    home = os.environ.get("RAYREC_COPIES") or Path.home() / ".cache" / "rayrec"
    return Path(home) / hashlib.sha256(url.encode()).hexdigest()[:16]
