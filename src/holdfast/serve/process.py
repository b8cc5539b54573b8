"""The server as a process: a socket, uvicorn on it, and an end within a second of SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn

from holdfast.errors import UsageError
from holdfast.serve.app import build
from holdfast.serve.engine import Engine
from holdfast.serve.server import Config, open_server

# Once asked to end, so long for answers to be written and for the step under way.
GRACE_S = 1.0


class _Uvicorn(uvicorn.Server):
    """Says when it is ready, and leaves signals to us: it would end the process by the signal that it got."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(config: Config, ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code: 0, or 1 if the engine failed.

    Args:
        ready: is given the server's URL, with the real port, once it takes requests.

    Raises:
        UsageError: no such model, or no such address, or the port is taken.
    """
    with _listen(config) as listening:
        server = open_server(config)
        server.engine.start()
        asgi = uvicorn.Config(
            build(server),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            timeout_graceful_shutdown=1,
            timeout_keep_alive=60,
        )
        asyncio.run(_serve(_Uvicorn(asgi, lambda: ready(_url(listening))), listening, server.engine))
        failed = server.engine.failure is not None
        if not server.engine.stop(0.0):  # deep in one long step, of which nothing is wanted any more
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(failed))
        return int(failed)


async def _serve(http: _Uvicorn, listening: socket.socket, engine: Engine) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    engine.on_failure = lambda: loop.call_soon_threadsafe(ending.set)

    async def end() -> None:
        await ending.wait()
        http.should_exit = True
        await asyncio.to_thread(engine.stop, GRACE_S)  # every request is answered with what it has

    waiting = asyncio.ensure_future(end())
    try:
        await http.serve(sockets=[listening])
    finally:
        ending.set()
        await waiting


def _listen(config: Config) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {config.host}: {error}", code="no_address", hint="use 127.0.0.1") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        message = f"can't listen on {config.host} port {config.port}: {error.strerror}"
        raise UsageError(message, code="no_address", hint="another process may have the port: try --port 0") from error
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
