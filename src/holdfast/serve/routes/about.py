"""What the server says of itself."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from holdfast import __version__
from holdfast.serve.server import Server


def routes(server: Server) -> list[Route]:
    async def health(_request: Request) -> Response:
        return Response(status_code=200 if server.engine.failure is None else 503)

    async def version(_request: Request) -> Response:
        return JSONResponse({"version": __version__, "server": "holdfast"})

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(server.metrics), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return [Route("/health", health), Route("/version", version), Route("/metrics", metrics)]
