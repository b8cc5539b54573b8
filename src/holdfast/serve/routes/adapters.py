"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from holdfast.serve import bodies
from holdfast.serve.bodies import LoadAdapter, UnloadAdapter
from holdfast.serve.server import Server


def routes(server: Server) -> list[Route]:
    async def load(request: Request) -> Response:
        body = await bodies.read_as(request, LoadAdapter)
        await server.adapters.load(server.engine, body.lora_name, body.lora_path, in_place=body.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(request: Request) -> Response:
        body = await bodies.read_as(request, UnloadAdapter)
        await server.adapters.unload(server.engine, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return [
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
    ]
