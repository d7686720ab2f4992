"""An addition to Ray Serve's proxies: a request whose front died gets 503 with Retry-After."""

from __future__ import annotations

from typing import Any

from rayrec.serving.bodies import Refusal
from rayrec.serving.service import RETRY
from rayrec.serving.web import Message, Receive, Send, refusal


class Answered:
    """Answers 503 where the application ends without an answer, for which the server would give 500."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        begun = scope["type"] != "http"

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        await self.app(scope, receive, noted)
        if not begun:
            lost = Refusal(503, "the front that took the request is gone. Try again.", RETRY)
            await refusal(lost)(scope, receive, send)  # type: ignore[arg-type]


def middlewares() -> list[Any]:
    """Return them as RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH wants it."""
    from starlette.middleware import Middleware

    return [Middleware(Answered)]
