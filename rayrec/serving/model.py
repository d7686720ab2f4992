"""A replica: it holds the version that is served and the one before, and answers batches of requests."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrec.recommend import Recommender, places
from rayrec.recommend.lists import Entry
from rayrec.serving.versions import Served, Version, Versions

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A version in memory. It never changes, so a batch that one snapshot answers mixes no versions."""

    number: int
    recommender: Recommender
    allowed_I: Any
    """Items that this version allows, bool."""
    source: tuple[Any, ...]
    """Names and times of the policy's files."""
    catalogue: str | None
    """File of the catalogue; None is that of the policy's run."""

    @property
    def about(self) -> dict[str, Any]:
        """Return the fields of an answer that name its version."""
        return {
            "policy": self.recommender.policy,
            "catalogue": self.recommender.version,
            "version": self.number,
        }

    def answer(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer requests (fields of bodies.Ask, with a history). One that cannot be answered has an ``error``.

        Requests whose beams have one width, or whose draws have one size, are searched together, so an answer does not
        depend on its neighbours beyond rounding.
        """
        groups: dict[tuple[bool, int], list[int]] = {}
        for place, ask in enumerate(asked):
            drawn = ask["explore"] == "gumbel"
            groups.setdefault((drawn, ask["k"] if drawn else max(ask["k"], self.recommender.width)), []).append(place)
        found: dict[int, dict[str, Any]] = {}
        for group in groups.values():
            found |= zip(group, self._together([asked[place] for place in group]), strict=True)
        return [found[place] for place in range(len(asked))]

    def _together(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        import torch

        allowed_PI = torch.stack([self._allowed(ask) for ask in asked])
        about = [a["history"] for a in asked], max(a["k"] for a in asked), allowed_PI
        try:
            if asked[0]["explore"] == "gumbel":
                lists = self.recommender.drawn(*about, [a["seed"] for a in asked])
            else:
                lists = self.recommender.ranked(*about)
        except ValueError as error:  # such as a history that is longer than the model sees
            if len(asked) == 1:
                return [{"error": str(error), "status": 422}]
            return [one for ask in asked for one in self._together([ask])]
        return [self._listed(ask, found[: ask["k"]]) for ask, found in zip(asked, lists, strict=True)]

    def _listed(self, ask: dict[str, Any], found: Sequence[Entry]) -> dict[str, Any]:
        titles, fallback = self.recommender.catalogue.titles, not ask["history"]
        items = [
            {"item": one.item, "title": titles[one.item], "rank": rank}
            | {"logprob": one.logprob, "inclusion": one.inclusion}
            for rank, one in enumerate(found, 1)
        ]
        seed = ask["seed"] if ask["explore"] == "gumbel" and not fallback else None
        draw = {"seed": seed, "threshold": found[0].threshold if found else None}
        return {"items": items, **self.about, "fallback": fallback, **draw}

    def _allowed(self, ask: dict[str, Any]) -> Any:
        """Items that the list may hold; titles that this catalogue does not have count for nothing."""
        import torch

        allowed_I = self.allowed_I
        if ask["allow"] is not None:
            chosen_I = torch.zeros_like(allowed_I)
            chosen_I[self.recommender.items(ask["allow"])] = True
            allowed_I = allowed_I & chosen_I
        barred = self.recommender.items([*ask["exclude"], *(ask["history"] if ask["exclude_history"] else ())])
        if barred:
            allowed_I = allowed_I.clone()
            allowed_I[barred] = False
        return allowed_I


def open_version(version: Version, held: Sequence[Snapshot], device: str) -> Snapshot:
    """Load a version; what ``held`` snapshots have of it is taken from them.

    Raises:
        ValueError: policy, catalogue or eligible titles cannot be opened, or the policy writes no finite probability.
    """
    source = _source(version)
    same = [one for one in held if one.source == source]
    whole = [one for one in same if one.catalogue == version.catalogue]
    if whole:
        recommender = whole[0].recommender
    elif same and version.catalogue:
        recommender = same[0].recommender.with_catalogue(version.catalogue)
    else:
        recommender = Recommender.open(version.policy, version.catalogue, template=version.template, device=device)
    if not whole:
        _probe(recommender)
    allowed_I = recommender.allowed(version.allow, version.exclude)
    return Snapshot(version.number, recommender, allowed_I, source, version.catalogue)


def _source(version: Version) -> tuple[Any, ...]:
    place = places.find(version.policy)
    files = sorted(Path(place.model).glob("*.safetensors"))
    times = [(file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    return place.model, version.template, *times


def _probe(recommender: Recommender) -> None:
    """Let a policy answer once before it is served."""
    (found,) = recommender.ranked([recommender.catalogue.titles[:1]], 1, recommender.allowed(None, ())[None])
    first = found[0].logprob if found else None
    if first is None or not math.isfinite(first):
        raise ValueError(
            f"{recommender.policy}: the policy gives no title a finite probability. Tune it again, or take another."
        )


class Model:
    """The deployment of Ray Serve that computes, in a thread beside the one that takes calls."""

    def __init__(self, folder: str, device: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.versions, self.device = Versions(folder), device
        self._compute, self._load = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._turn = asyncio.Lock()
        self.served, self.held = (served := self._now()), dict[int, Snapshot]()
        self.held[served.number] = self._opened(served.number)
        before = self.versions.read(served.number).before
        try:
            self.held |= {} if before is None else {before: self._opened(before)}
        except Exception as error:  # what was served before must not keep from serving
            _log.warning("Version %s, which was served before, cannot be opened any more: %s", before, error)

    async def state(self) -> dict[str, Any]:
        """Return the version that is served; until it is loaded here, the one that this replica serves."""
        number = self._now().number
        return self.held[number if number in self.held else self.served.number].about

    async def prepare(self, number: int) -> dict[str, Any]:
        """Load a version beside the one that is served; returns what it is, or an ``error``.

        The version before the served one is dropped first, so two policies are in memory at most.
        """
        if (served := self._now()).turn > self.served.turn:  # no batch has come since the switch
            await self._switch(served)
        async with self._turn:
            self.held = {self.served.number: self.held[self.served.number]}
            try:
                made = await asyncio.get_running_loop().run_in_executor(self._load, self._opened, number)
            except ValueError as error:
                return {"error": str(error), "status": 422}
            except Exception as error:  # a damaged folder makes libraries raise anything
                _log.exception("Version %d cannot be opened", number)
                return {"error": f"{type(error).__name__}: {error}", "status": 422}
            if not (eligible := int(made.allowed_I.sum())):
                return {"error": "found no eligible title left, wanted at least one for lists to hold", "status": 422}
            self.held = {**self.held, number: made}
        return {**made.about, "items": len(made.recommender.catalogue), "eligible": eligible}

    async def answer(self, served: Served, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer a batch by one version, which is served from now on; requests may name the policy before it."""
        if served.turn > self.served.turn:
            await self._switch(served)
        held, number = self.held, served.number if served.number in self.held else self.served.number
        return await asyncio.get_running_loop().run_in_executor(self._compute, _answers, held, number, asked)

    def _now(self) -> Served:
        served = self.versions.served
        assert served is not None, "the job begins the folder"
        return served

    async def _switch(self, served: Served) -> None:
        async with self._turn:
            if served.turn <= self.served.turn:
                return
            held = dict(self.held)
            if served.number not in held:  # this replica began after the version was prepared
                opened = asyncio.get_running_loop().run_in_executor(self._load, self._opened, served.number)
                held[served.number] = await opened
            keep = {served.number, self.versions.read(served.number).before}
            self.held = {number: one for number, one in held.items() if number in keep}
            self.served = served

    def _opened(self, number: int) -> Snapshot:
        if number in self.held:
            return self.held[number]
        return open_version(self.versions.read(number), list(self.held.values()), self.device)


def _answers(held: dict[int, Snapshot], number: int, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of the snapshots that the requests name, by default of version ``number``."""
    order = [held[number], *(one for other, one in held.items() if other != number)]
    by: dict[int, list[int]] = {}
    found: dict[int, dict[str, Any]] = {}
    for place, ask in enumerate(asked):
        named = ask["policy"]
        fit = [one.number for one in order if named is None or one.recommender.policy == named]
        if fit:
            by.setdefault(fit[0], []).append(place)
        else:
            known = sorted({one.recommender.policy for one in order})
            found[place] = {"error": f"policy: this service answers by {known}. Name one, or none.", "status": 404}
    for one, group in by.items():
        found |= zip(group, held[one].answer([asked[place] for place in group]), strict=True)
    return [found[place] for place in range(len(asked))]
