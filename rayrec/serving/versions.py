"""The versions that a service serves or served: files of one folder, which all of its processes read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rayrec.runs.manifest import read_json, sha256, write_json

_REMEDY = "Name another --state, or remove that folder: the service then begins with --policy."


@dataclass(frozen=True)
class Version:
    """A version that is served: it never changes, and another number is another version."""

    number: int
    policy: str
    template: str = "auto"
    catalogue: str | None = None
    """File; None is the catalogue of the policy's run."""
    allow: list[str] | None = None
    exclude: tuple[str, ...] = ()
    before: int | None = None
    """Number of the version that this one replaced."""


class Served(NamedTuple):
    """The version that is served, and how many have been before it: of two, the one with more is the later."""

    turn: int
    number: int


class Versions:
    """``current.json`` names one of ``versions/NUMBER.json``; ``catalogues/`` has those that were given."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def served(self) -> Served | None:
        """The version that is served; None in a new folder."""
        file = self.folder / "current.json"
        return Served(**read_json(file, _REMEDY)) if file.exists() else None

    def read(self, number: int) -> Version:
        """Return a version; ValueError: there is none of that number, or its file is damaged."""
        file = self._file(number)
        if not file.is_file():
            raise ValueError(f"Found no version {number}, wanted one of {self.numbers()}.")
        found = read_json(file, _REMEDY)
        return Version(**found | {"exclude": tuple(found["exclude"])})

    def numbers(self) -> list[int]:
        """Return the numbers of all versions, the first first."""
        return sorted(int(file.stem) for file in (self.folder / "versions").glob("*.json"))

    def begin(self, policy: str, template: str, catalogue: str | None) -> Version:
        """Return the version that is served; in a new folder it is made of the arguments."""
        if served := self.served:
            return self.read(served.number)
        made = self._write(Version(max(self.numbers(), default=0) + 1, policy, template, catalogue))
        self.switch(made.number)
        return made

    def add(self, of: Version, **changes: object) -> Version:
        """Write a version that differs from ``of``; it is served after :meth:`switch`."""
        return self._write(replace(of, number=self.numbers()[-1] + 1, before=of.number, **changes))  # type: ignore[arg-type]

    def discard(self, version: Version) -> None:
        """Forget a version that was never served."""
        self._file(version.number).unlink()

    def switch(self, number: int) -> Served:
        """Serve a version from now on."""
        served = Served(self.served.turn + 1 if self.served else 0, number)
        write_json(self.folder / "current.json", served._asdict())
        return served

    def keep_catalogue(self, titles: list[str], popularity: list[int]) -> str:
        """Write a catalogue and return its file, which is named by its content."""
        file = self.folder / "catalogues" / "new.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"title": pa.array(titles, pa.string()), "popularity": popularity}), file)
        kept = file.with_name(f"{sha256(file)[:16]}.parquet")
        file.replace(kept)
        return str(kept.absolute())

    def _file(self, number: int) -> Path:
        return self.folder / "versions" / f"{number:06d}.json"

    def _write(self, version: Version) -> Version:
        write_json(self._file(version.number), json.loads(json.dumps(asdict(version))))
        return version
