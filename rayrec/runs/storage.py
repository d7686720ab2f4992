"""Where runs are kept: a folder that every node sees, or an object store with a copy on every node.

``--runs s3://…`` (gs://, file://: what pyarrow opens) keeps a run in the store, and every node works on a copy of its
own. The store is the truth: a folder is finished once its manifest ``DONE``, uploaded last, is there, and copies are
checked against it. A plain folder is worked on in place, and nothing is copied.
"""

import errno
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from rayrec import signals
from rayrec.data.store import check_url, copy_of, is_url, open_url
from rayrec.errors import Stopped
from rayrec.runs.manifest import CHECKPOINT, MANIFEST, parse_manifest, sha256

T = TypeVar("T")

#: Error numbers of a storage that is full, read-only, out of quota, failing or gone.
TROUBLES = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE}
#: Most tries of a call, and the seconds after which it is not tried again: the S3 client's own retries take 90 s.
_TRIES, _PATIENCE = 5, 90.0
_CHUNK = 2**24
_PARTIAL = ".partial"
#: Folder of a run that Ray Train writes into.
RAY_TRAIN = ".ray_train"
#: The heartbeat of the driver of a run, and the processes that it started on its machine.
DRIVER, PROCESSES = ".driver.json", ".processes.json"
#: Entries of a copy that the store does not decide.
_OWN = (PROCESSES, DRIVER, RAY_TRAIN)


def errno_of(error: BaseException) -> int | None:
    """The number of a storage's error; safetensors' own errors have it in their text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


class Storage:
    """The folder of ``--runs``, wherever it is; can be pickled and used on any node.

    Paths are local: of the driver's copy (``root``), or of this node's (:meth:`here`). ``pause``: seconds before the
    second try of a call, doubled before each further one. All calls raise :class:`Stopped` when the last try fails.
    """

    def __init__(self, runs: str, pause: float = 0.5):
        self.url, self.pause = runs.rstrip("/") if is_url(runs) else "", pause
        self.root = copy_of(self.url) if self.url else Path(runs).absolute()

    def check(self) -> None:
        """Raise ValueError if pyarrow knows no such store, or the address holds a secret."""
        if self.url:
            check_url("--runs", self.url)

    @cached_property
    def store(self) -> tuple[Any, str]:
        """The pyarrow filesystem, and the folder in it."""
        return open_url(self.url)

    def name(self, path: Path) -> str:
        """A path of the driver as messages show it."""
        return f"{self.url}/{path.relative_to(self.root).as_posix()}" if self.url else str(path)

    def here(self, path: str | Path) -> Path:
        """The path on this node of what the driver has at ``path``."""
        path = Path(path)
        return copy_of(self.url) / path.relative_to(self.root) if self.url and path.is_relative_to(self.root) else path

    def upload(self, path: Path, missing_only: bool = False) -> None:
        """Copy a file or folder into the store, manifests last; ``missing_only``: without files that the store has."""
        if not self.url:
            return
        known = set(self._list(path)) if missing_only else set()
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        files = [file for file in files if file not in known]
        manifests = [file for file in files if file.name == MANIFEST]
        if files != manifests:  # an old manifest does not hold for new files; one alone is replaced at once
            for file in manifests:
                self.remove(file)
        for file in [*(file for file in files if file.name != MANIFEST), *manifests]:
            self._try(f"writing {file.name}", self._upload_file, file)

    def download(self, path: str | Path) -> Path:
        """Copy a finished folder of the driver, or one inside it, to this node; returns its path here.

        Files that fit the manifest are left, and weights that the driver has pruned make room for new ones. Raises
        Stopped: also if a file of the store does not fit the manifest.
        """
        here = self.here(path)
        if wrong := self.download_sound(here):
            raise Stopped(
                f"{', '.join(map(str, wrong))}: missing in {self.url}, or damaged there. Remove the driver's copy, "
                f"{self.root}, and give the same command: the phase that wrote it is made again."
            )
        return here

    def download_sound(self, here: Path) -> list[Path]:
        """:meth:`download` to the path ``here``; removes and returns the files that are damaged in the store."""
        if not self.url or not here.is_relative_to(copy_of(self.url)):
            return []
        manifests = ((folder, self._manifest(folder)) for folder in (here, here.parent))
        folder, manifest = next((one for one in manifests if one[1] is not None), (here, None))
        if manifest is None:  # a node that died had uploaded only a part
            shutil.rmtree(here, ignore_errors=True)
            return []
        kept = {folder / e["name"]: e["sha256"] for e in manifest["files"] if e["name"] not in manifest["pruned"]}
        wrong = _unlike({file: known for file, known in kept.items() if file.is_relative_to(here)})
        if wrong:
            self._remove_pruned(here)
        for _ in range(2):  # a file that changed while it was copied is right the second time
            for file in wrong:
                self.download_file(file)
            wrong = _unlike({file: kept[file] for file in wrong})
        for file in wrong:
            file.unlink(missing_ok=True)
        if folder == here:
            self.download_file(folder / MANIFEST)
        return wrong

    def download_file(self, file: Path) -> None:
        """Copy a file here, whole or not at all; one that the store does not have is removed."""
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
        except FileNotFoundError:  # a damaged store; the check of the folder finds it
            file.unlink(missing_ok=True)

    def download_all(self, folder: Path) -> None:
        """Replace what is here of an unfinished phase by what any node has uploaded, except checkpoints."""
        for file in self._list(folder):
            if not file.is_relative_to(folder / CHECKPOINT):
                self.download_file(file)

    def download_run(self, run: Path) -> None:
        """Make the driver's copy of a run equal to what is finished in the store; ValueError if it cannot be read."""
        if not self.url:
            return
        try:
            known = [file for file in self._list(run, tries=1) if file.relative_to(run).parts[0] not in _OWN]
            if not known:
                shutil.rmtree(run, ignore_errors=True)
            kept = {file for file in known if len(file.relative_to(run).parts) <= 2}  # of the run and its iterations
            for file in kept:
                self.download_file(file)
            for folder in (file.parent for file in known if file.name == MANIFEST):
                if (manifest := self._manifest(folder)) is not None:
                    self.download_sound(folder)
                    names = {entry["name"] for entry in manifest["files"]} - {*manifest["pruned"]}
                    kept |= {folder / MANIFEST, *(folder / name for name in names)}
        except Stopped as error:
            raise ValueError(f"--runs {self.url}: {error}") from error
        for file in [p for p in run.rglob("*") if p.is_file()]:
            if file not in kept and file.relative_to(run).parts[0] not in _OWN:
                file.unlink()

    def finished_in(self, folder: Path) -> list[Path]:
        """The finished folders directly inside ``folder``, as paths of this node, downloaded or not."""
        found = self._list(folder) if self.url else folder.glob(f"*/{MANIFEST}")
        return [file.parent for file in found if file.name == MANIFEST and file.parent.parent == folder]

    def remove(self, path: Path) -> None:
        """Remove a file or folder of this node from the store."""
        from pyarrow.fs import FileType

        def remove(at: str) -> None:
            found = self.store[0].get_file_info(at).type
            if found == FileType.File:
                self.store[0].delete_file(at)
            elif found == FileType.Directory:
                self.store[0].delete_dir(at)

        if self.url:
            self._try(f"removing {path.name}", remove, self._at(path))

    def clear(self, folder: Path, but: str) -> None:
        """Remove all that the store has in a folder except the entry ``but``."""
        for name in {file.relative_to(folder).parts[0] for file in self._list(folder)} - {but}:
            self.remove(folder / name)

    def for_ray_data(self, file: str | Path) -> dict[str, Any]:
        """Arguments with which Ray Data's tasks, on any node, read an uploaded file of the driver."""
        return {"paths": self._at(self.here(file)), "filesystem": self.store[0]} if self.url else {"paths": str(file)}

    def for_ray_train(self, run: Path) -> dict[str, Any]:
        """Arguments that tell Ray Train where to write its own state of a run."""
        folder = run / RAY_TRAIN
        if self.url:
            return {"storage_path": self._at(folder), "storage_filesystem": self.store[0]}
        return {"storage_path": str(folder)}

    def _at(self, path: Path) -> str:
        return f"{self.store[1]}/{path.relative_to(copy_of(self.url)).as_posix()}"

    def _list(self, folder: Path, tries: int = _TRIES) -> list[Path]:
        """The store's files of a folder, as paths of this node."""
        from pyarrow.fs import FileSelector

        if not self.url:
            return []
        at = self._at(folder)
        selector = FileSelector(at, recursive=True, allow_not_found=True)
        found = self._try(f"reading {folder.name}", self.store[0].get_file_info, selector, tries)
        names = [info.path[len(at) + 1 :] for info in found if info.is_file and not info.path.endswith(_PARTIAL)]
        return [folder / name for name in names if ".." not in PurePosixPath(name).parts]

    def _manifest(self, folder: Path) -> dict[str, Any] | None:
        """The store's manifest of a folder; None if there is none or it is damaged."""

        def read(at: str) -> bytes:
            with self.store[0].open_input_stream(at) as stream:
                return stream.read()

        try:
            return parse_manifest(self._try(f"reading {folder.name}", read, self._at(folder / MANIFEST)))
        except (FileNotFoundError, ValueError):
            return None

    def _remove_pruned(self, here: Path) -> None:
        """Remove this node's copies of weights that are pruned in the store, of the run that ``here`` is in."""
        root = copy_of(self.url)
        run = root / here.relative_to(root).parts[0]
        for folder in {run.joinpath(*file.relative_to(run).parts[:2]) for file in run.rglob("*.safetensors")}:
            for name in (self._manifest(folder) or {"pruned": []})["pruned"]:
                (folder / name).unlink(missing_ok=True)

    def _upload_file(self, file: Path) -> None:
        store, at = self.store[0], self._at(file)
        local = store.type_name == "local"  # an object is there whole or not at all, a file is not
        if local:
            store.create_dir(str(PurePosixPath(at).parent), recursive=True)
        to = f"{at}.{os.getpid()}{_PARTIAL}" if local else at
        with file.open("rb") as source, store.open_output_stream(to) as target:
            shutil.copyfileobj(source, target, _CHUNK)
        if local:
            store.move(to, at)

    def _try(self, what: str, call: Callable[[Any], T], value: Any, tries: int = _TRIES) -> T:
        """``call(value)``, tried again after a pause when the store fails; a missing file is raised at once."""
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
                signals.pause(self.pause * 2.0 ** (number - 1))
        raise AssertionError


def _unlike(sums: dict[Path, str]) -> list[Path]:
    """The files that are missing or have another sha256."""
    return [file for file, known in sums.items() if not (file.is_file() and sha256(file) == known)]
