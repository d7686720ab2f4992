"""Where runs are kept: a folder that every node sees, or an object store with a copy on every node.

``--runs s3://…`` (gs://, file://: what pyarrow opens) keeps a run in the store. Every node works on a copy of its own;
the store is the truth, so any machine goes on where another one died. A folder is finished once its manifest ``DONE``
is up, which goes last; a copy is checked against it. For a plain folder nothing is copied.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from rayrec.errors import Stopped
from rayrec.runs.manifest import MANIFEST, parse_manifest, sha256

T = TypeVar("T")

#: Numbers of errors of a storage that is full, read-only, out of quota, failing or gone.
TROUBLES = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE}
#: Tries, the first pause between them, and how long they go on in all; seconds. A client that hears nothing takes a
#: minute and a half for one.
_TRIES, _PAUSE, _PATIENCE = 5, 0.5, 90.0
_CHUNK = 2**24
#: What an address may say besides where the store is; pyarrow takes keys there as well.
_OPTIONS = {"region", "endpoint_override", "scheme", "allow_bucket_creation"}
_PARTIAL = ".partial"
#: Folder of a run that Ray Train writes into.
RAY_TRAIN = ".ray_train"
#: The heartbeat of the driver of a run, and the processes that it started on its machine.
DRIVER, PROCESSES = ".driver.json", ".processes.json"
#: Entries of a copy that the store does not decide.
_OWN = (PROCESSES, DRIVER, RAY_TRAIN)


def errno_of(error: BaseException) -> int | None:
    """The number of a storage's error; safetensors' own errors have it in their words alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


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
        parts = urlsplit(self.url)
        given = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
        if "@" in self.url or given - _OPTIONS or parts.fragment:
            raise ValueError(
                "--runs has a user or a key in its address, or a setting that may be one, and would be written down "
                f"with it. Leave only {', '.join(sorted(_OPTIONS))} there, and give keys in the environment: "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role."
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

    def upload(self, path: Path, missing_only: bool = False) -> None:
        """Put a file of this node, or a folder, into the store; returns when it is there.

        ``missing_only``: what the store has of the folder is the same already, put by another node.

        Raises:
            Stopped: the store takes nothing, in several tries.
        """
        if not self.url:
            return
        known = set(self._listed(path)) if missing_only else set()
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        files = [file for file in files if file not in known]
        done = [file for file in files if file.name == MANIFEST]
        if files != done:  # old promises do not hold for new files; a manifest alone is replaced in one go
            for file in done:
                self.remove(file)
        for file in [*(file for file in files if file not in done), *done]:
            self._try(f"writing {file.name}", self._copy_up, file)

    def download(self, path: str | Path) -> Path:
        """Bring what the driver calls ``path`` to this node, a finished folder or one inside it; returns where it is.

        Files that are here already, with the hashes of the manifest, are left. New ones take the room of weights that
        the driver has pruned since.

        Raises:
            Stopped: the store gives nothing, or twice a file that is not what the manifest says.
        """
        here = self.here(path)
        if wrong := self.download_sound(here):
            raise Stopped(
                f"{', '.join(map(str, wrong))}: missing in {self.url}, or damaged there. Remove the driver's copy, "
                f"{self.root}, and give the same command: the phase that wrote it is made again."
            )
        return here

    def download_sound(self, here: Path) -> list[Path]:
        """:meth:`download` to the path ``here`` of this node; files that the store itself has damaged are left out, and
        returned."""
        if not self.url or not here.is_relative_to(_copy_of(self.url)):
            return []
        for folder in (here, here.parent):
            if (manifest := self._manifest(folder)) is not None:
                sums = {
                    folder / e["name"]: e["sha256"] for e in manifest["files"] if e["name"] not in manifest["pruned"]
                }
                wrong = _unlike({file: known for file, known in sums.items() if file.is_relative_to(here)})
                if wrong:
                    self._make_room(here)
                for _ in range(2):  # what was changed on the way is right the second time
                    for file in wrong:
                        self.download_file(file)
                    wrong = _unlike({file: sums[file] for file in wrong})
                for file in wrong:
                    file.unlink(missing_ok=True)
                if folder == here:
                    self.download_file(folder / MANIFEST)
                return wrong
        shutil.rmtree(here, ignore_errors=True)  # left here by a death, before the store had all of it
        return []

    def finished_in(self, folder: Path) -> list[Path]:
        """The finished folders right inside ``folder``: where this node has, or is to have, what the storage has."""
        found = self._listed(folder) if self.url else folder.glob(f"*/{MANIFEST}")
        return [file.parent for file in found if file.name == MANIFEST and file.parent.parent == folder]

    def _make_room(self, here: Path) -> None:
        """Remove this node's copies of weights that are pruned in the store, of the run that ``here`` is in."""
        root = _copy_of(self.url)
        run = root / here.relative_to(root).parts[0]
        for folder in {run.joinpath(*file.relative_to(run).parts[:2]) for file in run.rglob("*.safetensors")}:
            for name in (self._manifest(folder) or {"pruned": []})["pruned"]:
                (folder / name).unlink(missing_ok=True)

    def download_all(self, folder: Path) -> None:
        """Bring the files that any node has put into a folder of an unfinished phase.

        They replace what is here: a worker that died on this node may have left half of one.
        """
        for file in self._listed(folder):
            self.download_file(file)

    def download_run(self, run: Path) -> None:
        """Make the driver's copy of a run what the store has: what is finished there, and nothing else.

        Raises:
            ValueError: the store cannot be read; the message says which, and why.
        """
        if not self.url:
            return
        try:
            known = [file for file in self._listed(run, tries=1) if file.relative_to(run).parts[0] not in _OWN]
            if not known:
                shutil.rmtree(run, ignore_errors=True)
            folders = [file.parent for file in known if file.name == MANIFEST]
            loose = [file for file in known if len(file.relative_to(run).parts) <= 2]
            kept = set(loose)
            for file in loose:
                self.download_file(file)
            for folder in folders:
                manifest = self._manifest(folder)
                if manifest is not None:
                    self.download_sound(folder)
                    names = {entry["name"] for entry in manifest["files"]} - {*manifest["pruned"]}
                    kept |= {folder / MANIFEST, *(folder / name for name in names)}
        except Stopped as error:
            raise ValueError(f"--runs {self.url}: {error}") from error
        for file in [p for p in run.rglob("*") if p.is_file()]:
            if file not in kept and file.relative_to(run).parts[0] not in _OWN:
                file.unlink()

    def for_ray_data(self, file: str | Path) -> dict[str, Any]:
        """How Ray Data's tasks, on any node, read a file of the driver that is kept."""
        return {"paths": self._at(self.here(file)), "filesystem": self.store[0]} if self.url else {"paths": str(file)}

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
        """Remove what the store has in a folder, but for the entry ``but``."""
        for name in {file.relative_to(folder).parts[0] for file in self._listed(folder)} - {but}:
            self.remove(folder / name)

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
        names = [info.path[len(at) + 1 :] for info in found if info.is_file and not info.path.endswith(_PARTIAL)]
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
        local = store.type_name == "local"  # an object is there whole or not at all, a file is not
        if local:
            store.create_dir(str(PurePosixPath(at).parent), recursive=True)
        to = f"{at}.{os.getpid()}{_PARTIAL}" if local else at
        with file.open("rb") as source, store.open_output_stream(to) as target:
            shutil.copyfileobj(source, target, _CHUNK)
        if local:
            store.move(to, at)

    def download_file(self, file: Path) -> None:
        """Copy a file here, whole or not at all: others on this node may read it. One that is gone is left out."""
        if not self.url:
            return

        def copy(at: str) -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}{_PARTIAL}")
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


def _unlike(sums: dict[Path, str]) -> list[Path]:
    """The files that are missing, or have another sha256."""
    return [file for file, known in sums.items() if not (file.is_file() and sha256(file) == known)]


def _copy_of(url: str) -> Path:
    """Where this node keeps its copies of a store's runs."""
    home = os.environ.get("RAYREC_COPIES") or Path.home() / ".cache" / "rayrec"
    return Path(home) / hashlib.sha256(url.encode()).hexdigest()[:16]
