"""The service over HTTP: routes, and what is refused before a route sees it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as AnyHTTPException

from rayrec.serving.bodies import (
    BODY,
    CATALOGUE_BODY,
    Answer,
    Ask,
    Changed,
    Counted,
    Eligible,
    NewCatalogue,
    NewPolicy,
    Outcome,
    Refusal,
    Rollback,
    reasons,
)
from rayrec.serving.service import Service

#: Paths that want a token where there is none, and that want no token where there is one.
ADMIN, OPEN = ("/catalogue", "/policy", "/eligible", "/rollback", "/versions"), ("/health", "/ready")
OTHER = ("/recommend", "/outcome", "/metrics", "/docs", "/openapi.json")
_LARGE = {"/catalogue": CATALOGUE_BODY, "/eligible": CATALOGUE_BODY}

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def digest(token: str) -> str:
    """Return the hash that is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def make_app(service: Service, token: str | None) -> Guard:
    """Return the ASGI application of a service. ``token`` is the :func:`digest` of its token."""
    docs = {"redoc_url": None, "description": __doc__, "version": "1"}
    app = FastAPI(title="rayrec", dependencies=[Depends(HTTPBearer(auto_error=False))], **docs)

    @app.post("/recommend", response_model=Answer)
    async def recommend(body: Ask) -> Any:
        """A list of titles for a history or a user."""
        return JSONResponse(await service.recommend(body))

    @app.post("/outcome", response_model=Counted)
    async def outcome(body: Outcome) -> Any:
        """Report which title was chosen after a list; it is counted in HR."""
        return JSONResponse(service.choose(body))

    @app.get("/health")
    async def health() -> Any:
        """Whether the service's process lives."""
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> Any:
        """Return the served version, once a replica can answer."""
        return JSONResponse(await service.ready())

    @app.get("/metrics")
    async def metrics() -> Any:
        """Metrics in Prometheus' text format."""
        return Response(service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/catalogue", response_model=Changed)
    async def catalogue(body: NewCatalogue) -> Any:
        """Serve other titles."""
        return JSONResponse(await service.set_catalogue(body))

    @app.post("/policy", response_model=Changed)
    async def policy(body: NewPolicy) -> Any:
        """Serve another policy."""
        return JSONResponse(await service.set_policy(body))

    @app.post("/eligible", response_model=Changed)
    async def eligible(body: Eligible) -> Any:
        """Set which titles of the catalogue lists may hold."""
        return JSONResponse(await service.set_eligible(body))

    @app.post("/rollback", response_model=Changed)
    async def rollback(body: Rollback) -> Any:
        """Serve a former version."""
        return JSONResponse(await service.roll_back(body))

    @app.get("/versions")
    async def versions() -> Any:
        """The numbers of all versions, and of the one that is served."""
        return JSONResponse({"versions": service.versions.numbers(), "version": service.served.number})

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return refusal(Refusal(422, reasons(error.errors())))

    @app.exception_handler(AnyHTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        return refusal(Refusal(error.status_code, str(error.detail)))

    return Guard(app, service, token)


def refusal(error: Refusal) -> Response:
    """Return the answer of a refused request."""
    headers = {"Retry-After": str(error.retry)} if error.retry is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error.error}, error.status, headers)


class Guard:
    """Asks for the token, reads a body up to its limit and in time, and counts answers by path and status."""

    def __init__(self, app: FastAPI, service: Service, token: str | None):
        self.app, self.service, self.token = app, service, token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)  # type: ignore[arg-type]
        path = scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = path if path in (*ADMIN, *OPEN, *OTHER) else "other"
                self.service.gauges.requested(known, message["status"])
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            self._admit(scope, path)
            body = await self._body(scope, receive, _LARGE.get(path, BODY))
        except Refusal as error:
            return await refusal(error)(scope, receive, counted)  # type: ignore[arg-type]
        await self.app(scope, replayed(body, receive), counted)  # type: ignore[arg-type]

    def _admit(self, scope: Message, path: str) -> None:
        if path in OPEN or (self.token is None and path not in ADMIN):
            return
        if self.token is None:
            raise Refusal(403, f"{path} changes what is served. Start the service with --token, and show it.")
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, word = given.partition(b" ")
        shown = hashlib.sha256(word.strip()).hexdigest() if kind.lower() == b"bearer" else ""
        if not hmac.compare_digest(shown, self.token):
            raise Refusal(401, "wanted the header `Authorization: Bearer TOKEN` with this service's token.")

    async def _body(self, scope: Message, receive: Receive, most: int) -> bytes:
        said = dict(scope["headers"]).get(b"content-length", b"0")
        large = Refusal(413, f"a body may have {most} bytes.")
        if said.isdigit() and int(said[:20]) > most:
            raise large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.service.timeout):
                while True:
                    message = await receive()
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {self.service.timeout:g} s.") from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that was read, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
