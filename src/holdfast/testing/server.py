"""An HTTP server that answers as it is told: the ground on which the fake inference servers stand.

It listens on a port of 127.0.0.1 that the system chooses, and keeps that port until it is stopped, also while it is
dead. Every request is logged. Faults are put in from outside: the next calls of a route are then answered wrongly.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec


class Request(msgspec.Struct, frozen=True):
    """One request as it came in; `path` without its query, header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def route(self) -> str:
        """`METHOD /path`"""
        return f"{self.method} {self.path}"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Reply(msgspec.Struct, frozen=True):
    """An answer; as a fault: the answer that the next call gets instead of the right one."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    headers: Mapping[str, str] = {}

    @classmethod
    def of(cls, content: object, status: int = 200) -> Reply:
        """`content` as JSON."""
        return cls(status, json.dumps(content).encode())


class Hang(msgspec.Struct, frozen=True):
    """No answer, until the server is stopped."""


class Half(msgspec.Struct, frozen=True):
    """An answer that announces more bytes than come; then the connection is closed."""

    body: bytes = b'{"object": "list", "da'


class Drip(msgspec.Struct, frozen=True):
    """An answer of which a byte comes every `every_s` seconds, for ever; its headers never end, or its body."""

    headers: bool = False
    every_s: float = 0.02


class Flood(msgspec.Struct, frozen=True):
    """A body of `size` bytes, in chunks, without saying so before."""

    size: int


class Raw(msgspec.Struct, frozen=True):
    """Bytes as they are, HTTP or not; then the connection is closed."""

    sent: bytes


class Drop(msgspec.Struct, frozen=True):
    """The connection is closed without an answer. `done`: the request takes effect, and only its answer is lost."""

    done: bool = False


class Die(msgspec.Struct, frozen=True):
    """The process ends: every connection is cut and the port is closed until `restart`."""

    done: bool = False


Fault = Reply | Hang | Half | Drip | Flood | Raw | Drop | Die


class ServerDied(BaseException):
    """Raised by a route of a fake server whose process would have ended here."""


class FakeServer:
    """A server whose routes are methods, `handle` among them to be overridden.

    Attributes:
        log: every request, in the order of its arrival.
        deaths: how often it died, with the reasons.
    """

    def __init__(self) -> None:
        self.log: list[Request] = []
        self.deaths: list[str] = []
        self._faults: list[tuple[str, Fault, int | None]] = []
        self._port: socket.socket | None = None
        self._listener: _Listener | None = None
        self._loop: threading.Thread | None = None
        self.changed = threading.Condition(threading.RLock())  # guards the state of subclasses as well

    # What subclasses define

    def handle(self, request: Request) -> Reply:
        """The answer to `request`. Called with `changed` held; may wait on it by `wait_until`."""
        return Reply.of({"detail": "Not Found"}, 404)

    def forget(self) -> None:
        """Go back to the state of a process that has just started."""

    # Life

    @property
    def url(self) -> str:
        assert self._port is not None, "start the server first"
        return f"http://127.0.0.1:{self._port.getsockname()[1]}"

    @property
    def alive(self) -> bool:
        return self._listener is not None and not self._listener.ended.is_set()

    def start(self) -> Self:
        if self._port is None:
            self._port = socket.socket()
            self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._port.bind(("127.0.0.1", 0))  # bound and not listening: calls are refused, and nobody else gets it
        assert self._listener is None, "it runs already"
        listener = _Listener(self._port.getsockname(), self)
        self._listener = listener
        self._loop = threading.Thread(target=listener.serve_forever, args=(0.01,), name=type(self).__name__)
        self._loop.start()
        return self

    def die(self, reason: str = "killed") -> None:
        """End as a killed process does. May be called by a route."""
        listener = self._listener
        if listener is not None and not listener.ended.is_set():
            self.deaths.append(reason)
            listener.cut()
            with self.changed:
                self.changed.notify_all()

    def restart(self) -> None:
        """Come up again at the same address, as a new process: nothing is remembered."""
        self.die("restarted")
        self._join()
        with self.changed:
            self.forget()
        self.start()

    def stop(self) -> None:
        """End, and give the port back. No thread and no socket is left. Twice is once."""
        if self._listener is not None:
            self._listener.cut()
            with self.changed:
                self.changed.notify_all()
            self._join()
        if self._port is not None:
            self._port.close()
            self._port = None

    def _join(self) -> None:
        assert self._listener is not None
        assert self._loop is not None
        self._loop.join()
        self._listener.server_close()
        self._listener = self._loop = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Faults

    def fail(self, route: str, fault: Fault, times: int | None = 1) -> None:
        """Answer the next `times` calls of `route` ("METHOD /path"; "*" for all) by `fault`; None: all from now on."""
        with self.changed:
            self._faults.append((route, fault, times))

    def heal(self) -> None:
        """Take back every fault."""
        with self.changed:
            self._faults.clear()

    def routes(self) -> list[str]:
        """`METHOD /path` of every request so far."""
        return [request.route for request in list(self.log)]

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait, with `changed` held, until `true()`; ServerDied: the server ended before that."""
        self.changed.wait_for(lambda: true() or not self.alive)
        if not self.alive:
            raise ServerDied

    def _fault(self, request: Request) -> Fault | None:
        for at, (route, fault, times) in enumerate(self._faults):
            if route in ("*", request.route):
                if times is not None:
                    self._faults[at] = (route, fault, times - 1)
                    if times == 1:
                        del self._faults[at]
                return fault
        return None

    def answer(self, request: Request, handler: _Handler) -> None:
        """Log `request`, and answer it as told."""
        with self.changed:
            self.log.append(request)
            fault = self._fault(request)
            reply = None
            if fault is None or (isinstance(fault, Drop | Die) and fault.done):
                reply = self.handle(request)
                self.changed.notify_all()
        match fault:
            case None:
                assert reply is not None
                handler.reply(reply)
            case Reply():
                handler.reply(fault)
            case Die():
                self.die("told to die")
            case _:
                handler.misbehave(fault)


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them

    def __init__(self, address: tuple[str, int], server: FakeServer) -> None:
        self.server = server
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def opened(self, connection: socket.socket) -> bool:
        with self._lock:
            self._open.add(connection)
        return not self.ended.is_set()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        """Close the port, then every connection. Handlers end by themselves."""
        self.ended.set()
        self.shutdown()
        self.socket.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is shown."""
        import sys

        if not isinstance(sys.exception(), ConnectionError | ServerDied):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def handle(self) -> None:
        if self.server.opened(self.connection):
            super().handle()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        request = Request(
            self.command,
            parts.path,
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            self.rfile.read(size),
        )
        try:
            self.server.server.answer(request, self)
        except ServerDied as death:
            if str(death):
                self.server.server.die(str(death))
            self.close_connection = True
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_DELETE = do_PUT = _serve

    def reply(self, reply: Reply) -> None:
        self.send_response(reply.status)
        if reply.kind:
            self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def misbehave(self, fault: Fault) -> None:
        self.close_connection = True
        match fault:
            case Hang():
                self.server.ended.wait()
            case Half(body):
                self._head(f"Content-Length: {len(body) + 1000}")
                self.wfile.write(body)
            case Raw(sent):
                self.wfile.write(sent)
            case Drip(headers, every_s):
                if headers:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                else:
                    self._head("Content-Length: 1000000000")
                while not self.server.ended.wait(every_s):
                    self.wfile.write(b"1")
            case Flood(size):
                self._head("Transfer-Encoding: chunked")
                part = b" " * 65536
                for _ in range(-(-size // len(part))):
                    self.wfile.write(b"10000\r\n" + part + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")

    def _head(self, *lines: str) -> None:
        head = "\r\n".join(("HTTP/1.1 200 OK", "Content-Type: application/json", *lines))
        self.wfile.write(head.encode() + b"\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Requests are in the server's log."""
