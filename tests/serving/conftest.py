"""A service in this process: the deployment's own model, on a tiny policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from rayrec.models.settings import ModelConfig
from rayrec.models.tiny import make_tiny
from rayrec.recommend.histories import HISTORIES
from rayrec.serving.model import Model
from rayrec.serving.service import Service
from rayrec.serving.users import Users
from rayrec.serving.versions import Served, Versions
from rayrec.serving.web import digest, make_app

TITLES = [f"{a} {b}" for a in ("Red", "Blue", "Old", "Lost") for b in ("River", "House", "Road", "Winter (1999)")]
#: What a user chose that no other may learn.
SECRET = "The Secret Diary"
TOKEN = "a word"


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies, `one` and `two`, and their catalogue."""
    folder = tmp_path_factory.mktemp("policies")
    for seed, name in enumerate(("one", "two")):
        make_tiny(TITLES, ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), folder / name, seed)
    rows = "".join(f"{title},{number}\n" for number, title in enumerate(TITLES))
    (folder / "titles.csv").write_text("title,popularity\n" + rows)
    return folder


@pytest.fixture
def versions(policies: Path, tmp_path: Path) -> Versions:
    made = Versions(tmp_path / "state")
    made.begin(str(policies / "one"), "compact", str(policies / "titles.csv"))
    return made


class Here:
    """Replicas (service.Replicas) that are models of this process."""

    def __init__(self, *models: Model):
        self.models, self.batches = models, list[int]()

    async def answer(self, served: Served, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.batches.append(len(asked))
        return await self.models[len(self.batches) % len(self.models)].answer(served, asked)

    async def prepare(self, number: int) -> list[dict[str, Any]]:
        return [await model.prepare(number) for model in self.models]

    async def state(self) -> dict[str, Any]:
        return await self.models[0].state()


def users() -> Users:
    rows = [{"user": "ann", "history": [SECRET, TITLES[3]], "error": None}, {"user": "7", "history": TITLES[:2]}]
    return Users([pa.Table.from_pylist(rows, schema=HISTORIES)])


def service_of(versions: Versions, *models: Model, **given: Any) -> Service:
    models = models or (Model(str(versions.folder), "cpu", 1),)
    settings = {"lanes": len(models), "queue": 256, "batch": 64, "timeout": 20.0, "window": 100, "outcomes": 50} | given
    return Service(versions, Here(*models), users(), **settings)


@pytest.fixture
def talk(versions: Versions) -> Callable[..., Any]:
    """Call ``talk(use)``: ``use`` is a coroutine function of a client of a service with a token, and of the service."""

    def with_client(use: Callable[[httpx.AsyncClient, Service], Any], token: str | None = TOKEN, **given: Any) -> Any:
        async def session() -> Any:
            service = service_of(versions, **given)
            app = make_app(service, digest(token) if token else None)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=headers) as client:
                return await use(client, service)

        return asyncio.run(session())

    return with_client
