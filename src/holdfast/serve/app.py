"""The ASGI application: routes, what errors look like, and who may ask."""

from __future__ import annotations

import hashlib
import secrets

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from holdfast.serve.errors import ApiError, internal
from holdfast.serve.routes import about, adapters, control, openai
from holdfast.serve.server import Server

OPEN_PATHS = frozenset({"/health", "/metrics", "/version"})


class Authentication:
    """Only who knows the key may ask for more than how the server is.

    vLLM guards the paths under /v1 alone; here those that change the weights are guarded, too.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._digest = hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._knows_key(Headers(scope=scope)):
            await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        told = hashlib.sha256(token.encode()).digest()
        return secrets.compare_digest(told, self._digest) and scheme.lower() == "bearer"


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, status_code=error.status_code, headers=error.headers)


async def _server_error(_request: Request, error: Exception) -> Response:
    answer = internal(f"{type(error).__name__}: {error}")
    return JSONResponse(answer.body(), status_code=answer.status)


def build(server: Server) -> Starlette:
    """The application over a server whose engine has been started."""
    middleware = [] if server.config.api_key is None else [Middleware(Authentication, key=server.config.api_key)]
    return Starlette(
        routes=[*about.routes(server), *openai.routes(server), *adapters.routes(server), *control.routes(server)],
        middleware=middleware,
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _server_error},
    )
