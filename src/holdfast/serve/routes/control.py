"""Pausing, and replacing the full weights: what vLLM has only with VLLM_SERVER_DEV_MODE=1."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any, cast, get_args

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from holdfast.serve import bodies
from holdfast.serve.bodies import UpdateWeightVersion
from holdfast.serve.engine import PauseMode
from holdfast.serve.errors import bad_value, malformed
from holdfast.serve.reading import read_tensors
from holdfast.serve.server import Server

MODES = get_args(PauseMode)


def routes(server: Server) -> list[Route]:
    async def pause(request: Request) -> Response:
        mode = request.query_params.get("mode", "abort")
        if mode not in MODES:
            raise malformed(
                "1 validation error:\n  query.mode: Input should be 'abort', 'wait' or 'keep'", "query.mode"
            )
        await asyncio.wrap_future(server.engine.pause(cast("PauseMode", mode)))
        return JSONResponse({"status": "paused"})

    async def resume(_request: Request) -> Response:
        await asyncio.wrap_future(server.engine.resume())
        return JSONResponse({"status": "resumed"})

    async def is_paused(_request: Request) -> Response:
        return JSONResponse({"is_paused": server.engine.is_paused})

    async def reset_prefix_cache(_request: Request) -> Response:
        return JSONResponse({"success": True})  # there is none: every request reads its whole prompt

    async def collective_rpc(request: Request) -> Response:
        await _reload(server, await bodies.read_json(request))
        return JSONResponse({"results": [None]})

    async def weight_info(_request: Request) -> Response:
        return JSONResponse({"weight_version": server.weight_version})

    async def update_weight_version(request: Request) -> Response:
        body = await bodies.read_as(request, UpdateWeightVersion)
        server.weight_version = body.new_version
        return JSONResponse({"success": True, "new_version": body.new_version})

    return [
        Route("/pause", pause, methods=["POST"]),
        Route("/resume", resume, methods=["POST"]),
        Route("/is_paused", is_paused),
        Route("/reset_prefix_cache", reset_prefix_cache, methods=["POST"]),
        Route("/collective_rpc", collective_rpc, methods=["POST"]),
        Route("/weight_info", weight_info),
        Route("/update_weight_version", update_weight_version, methods=["POST"]),
    ]


async def _reload(server: Server, body: Any) -> None:
    """`reload_weights`: read the directory, then swap all of it or nothing.

    Raises:
        ApiError: 400 for another method or wrong arguments; 500 for weights that can't be used.
    """
    if not isinstance(body, dict):
        raise malformed("Request body must be a JSON object")
    method, keywords = body.get("method"), body.get("kwargs", {})
    if method is None:
        raise malformed("Missing 'method' in request body")
    if method != "reload_weights" or body.get("args"):
        raise bad_value("only reload_weights, with kwargs, can be called here", "method", method)
    if not isinstance(keywords, dict) or not keywords.keys() <= {"weights_path"}:
        raise bad_value("reload_weights takes weights_path alone", "kwargs")
    path = keywords.get("weights_path", str(server.config.model))
    if not isinstance(path, str) or not path or "\0" in path:
        raise bad_value("weights_path must be the path of a directory", "weights_path")
    tensors = await asyncio.to_thread(read_tensors, pathlib.Path(path))
    await asyncio.wrap_future(server.engine.call(lambda: server.replace_weights(tensors)))
