"""Requests of the service, whatever computes the lists."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from rayrec.recommend import places
from rayrec.recommend.catalogues import read_catalogue
from rayrec.recommend.lists import Explore
from rayrec.serving.bodies import LENGTH, SEEDS, Ask, Eligible, NewCatalogue, NewPolicy, Outcome, Refusal, Rollback
from rayrec.serving.gauges import Gauges
from rayrec.serving.outcomes import Outcomes
from rayrec.serving.together import Together
from rayrec.serving.users import Users
from rayrec.serving.versions import Served, Version, Versions

#: Seconds after which a client that was refused may try again, and that a replica may take to name what it serves.
RETRY, READY = 1, 2.0


class Replicas(Protocol):
    """A computer of lists: the model's deployment, or one model in this process."""

    async def answer(self, served: Served, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer a batch by a version, on any replica. Refusal: none can."""
        ...

    async def prepare(self, number: int) -> list[dict[str, Any]]:
        """Load a version beside the one that is served, on every replica."""
        ...

    async def state(self) -> dict[str, Any]:
        """Return the version that a replica serves."""
        ...


class Service:
    """Requests in, answers out: limits, batches, versions and metrics."""

    def __init__(
        self,
        versions: Versions,
        replicas: Replicas,
        users: Users | None,
        *,
        lanes: int,
        queue: int,
        batch: int,
        timeout: float,
        window: int,
        outcomes: int,
        explore: Explore = "none",
    ):
        served = versions.served
        assert served is not None, "the job begins the folder"
        self.versions, self.replicas, self.users = versions, replicas, users
        self.queue, self.timeout, self.served, self.waiting = queue, timeout, served, 0
        self.gauges, self.outcomes, self.explore = Gauges(window), Outcomes(outcomes), explore
        self._together = Together(self._answer, batch, lanes)
        self._change = asyncio.Lock()

    async def recommend(self, ask: Ask) -> dict[str, Any]:
        """Return an answer (bodies.Answer). Refusal: with its status."""
        if self.waiting >= self.queue:
            raise Refusal(503, f"{self.queue} requests wait already. Try again.", RETRY)
        begun = time.perf_counter()
        self.waiting += 1
        try:
            asked = ask.model_dump(exclude={"user"}) | {"history": self._history(ask), **self._draw(ask)}
            found = await asyncio.wait_for(self._together.ask(asked), self.timeout)
        except TimeoutError:
            raise Refusal(503, f"no answer within {self.timeout:g} s. Try again.", RETRY) from None
        finally:
            self.waiting -= 1
        if "error" in found:
            raise Refusal(found["status"], found["error"])
        titles = [item["title"] for item in found["items"]]
        self.gauges.answered(found["policy"], time.perf_counter() - begun, titles, found["fallback"])
        return {"id": self.outcomes.shown(found["policy"], titles, ask.user), **found}

    def choose(self, body: Outcome) -> dict[str, Any]:
        """Count what was chosen after a list, once (bodies.Counted). Refusal: the list is not known."""
        found = self.outcomes.chosen(body.title, body.id, body.user)
        if found is None:
            raise Refusal(404, f"no such list among the last {self.outcomes.size}, or it has its outcome already.")
        self.gauges.chosen(*found)
        return found._asdict()

    def _draw(self, ask: Ask) -> dict[str, Any]:
        explore = ask.explore or self.explore
        if explore == "none" and ask.seed is not None:
            raise Refusal(422, "seed: this list is not drawn. Add `explore`: `gumbel`, or leave it out.")
        return {"explore": explore, "seed": secrets.randbelow(SEEDS) if ask.seed is None else ask.seed}

    def _history(self, ask: Ask) -> list[str]:
        if ask.history is not None:
            return ask.history
        if self.users is None:
            raise Refusal(422, "user: this service has no table of histories. Send `history`.")
        return self.users.get(str(ask.user))

    async def _answer(self, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.gauges.batch(len(asked))
        return await self.replicas.answer(self.served, asked)

    async def ready(self) -> dict[str, Any]:
        """Return what is served. Refusal: no replica answers in time."""
        try:
            return await asyncio.wait_for(self.replicas.state(), READY)
        except TimeoutError:
            raise Refusal(503, "no replica is ready. Try again.", RETRY) from None

    def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return self.gauges.text(self.waiting, self.served.number)

    async def set_catalogue(self, body: NewCatalogue) -> dict[str, Any]:
        """Serve other titles; which of them are eligible is forgotten."""

        def make(now: Version) -> Version:
            if body.file is not None:
                read = read_catalogue(body.file)
                titles, popularity = read.titles, read.popularity.tolist()
            else:
                titles = [row.title for row in body.rows or ()]
                popularity = [row.popularity for row in body.rows or ()]
            _check_titles(titles)
            file = self.versions.keep_catalogue(titles, popularity)
            return self.versions.add(now, catalogue=file, allow=None, exclude=())

        return await self._changed(make)

    async def set_policy(self, body: NewPolicy) -> dict[str, Any]:
        """Serve another policy, with the catalogue that was posted or else its own."""
        return await self._changed(
            lambda now: self.versions.add(now, policy=resolved(body.policy), template=body.template)
        )

    async def set_eligible(self, body: Eligible) -> dict[str, Any]:
        """Serve the same titles less those that are not eligible; nothing is built again."""
        exclude = tuple(body.exclude)
        return await self._changed(lambda now: self.versions.add(now, allow=body.allow, exclude=exclude))

    async def roll_back(self, body: Rollback) -> dict[str, Any]:
        """Serve a former version again."""

        def find(now: Version) -> Version:
            number = now.before if body.to is None else body.to
            if number is None:
                raise ValueError(f"Version {now.number} replaced no other. Name one with `to`.")
            return self.versions.read(number)

        return await self._changed(find)

    async def _changed(self, make: Callable[[Version], Version]) -> dict[str, Any]:
        """Make a version, load it on all replicas, and switch between two batches."""
        return await asyncio.shield(asyncio.ensure_future(self._in_turn(make)))  # also where the client leaves

    async def _in_turn(self, make: Callable[[Version], Version]) -> dict[str, Any]:
        async with self._change:
            known = self.versions.numbers()
            try:
                version = await asyncio.to_thread(lambda: make(self.versions.read(self.served.number)))
            except (ValueError, OSError, RuntimeError) as error:  # also a path that is too long, or ~ of nobody
                raise Refusal(422, str(error)) from error
            found = await self.replicas.prepare(version.number)
            wrong = [one for one in found if "error" in one]
            if (wrong or not found) and version.number not in known:
                self.versions.discard(version)
            if not found:
                raise Refusal(503, "no replica is ready. Try again.", RETRY)
            if wrong:
                raise Refusal(wrong[0]["status"], wrong[0]["error"])
            self.served = self.versions.switch(version.number)
            return found[0]


def resolved(policy: str) -> str:
    """Return a policy so that every process finds the same one: the folder of a run's best, absolute."""
    place = places.find(policy)
    path = Path(place.model).expanduser()
    return str(path.absolute()) if path.exists() else policy


def _check_titles(titles: list[str]) -> None:
    if len(set(titles)) < len(titles):
        raise ValueError("The catalogue has a title twice. Remove that row.")
    if long := [title for title in titles if len(title) > LENGTH]:
        raise ValueError(f"A title has {len(long[0])} characters, wanted {LENGTH} at most. Shorten it.")
