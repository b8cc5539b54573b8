"""The own HTTP of a sync process: what it serves and wants, its health and metrics; on loopback unless told otherwise.

    GET  /healthz    200 while every server has what it should or is on its way; 503 with the reasons otherwise
    GET  /metrics    Prometheus
    GET  /served     which version each server serves, proved, and under which model name
    GET  /desired    what each channel's newest version is, and what is wanted
    POST /apply      for --drive manual: {"version": "newest" or a name, "adapter": which channel (of several)}

With a token (`--token-file`) every request but /healthz needs `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import msgspec

from holdfast.errors import ConflictError, HoldfastError, NotVisibleError, TimedOutError, UnavailableError, UsageError
from holdfast.net.listening import parse_listen
from holdfast.sync.metrics import CONTENT_TYPE

logger = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024
IDLE_S = 30.0
JSON = "application/json"


class Apply(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /apply."""

    version: str = "newest"
    adapter: str | None = None


class Answers(Protocol):
    """Who knows the answers: the process."""

    def served(self) -> dict[str, object]: ...
    def desired(self) -> dict[str, object]: ...
    def health(self) -> tuple[bool, dict[str, object]]: ...
    def metrics(self) -> bytes: ...
    def apply(self, version: str, adapter: str | None) -> dict[str, object]: ...


class Api:
    """The HTTP server, in threads of its own.

    Args:
        listen: "HOST:PORT"; port 0 takes a free one.
        token: what callers must show, read afresh at each request, or None.
    """

    def __init__(self, listen: str, answers: Answers, token: Callable[[], str | None]) -> None:
        host, port = parse_listen(listen)

        class Handler(_Handler):
            pass

        Handler.answers = answers
        Handler.token = staticmethod(token)
        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {listen}: {error.strerror or error}",
                code="cannot_listen",
                hint="give another --listen HOST:PORT",
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="holdfast-api", daemon=True
        )

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    answers: Answers
    token: Callable[[], str | None]
    protocol_version = "HTTP/1.0"  # a connection per request: none outlives `stop`
    server_version = "holdfast"
    sys_version = ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/healthz":
            healthy, body = self.answers.health()
            self._send(HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE, body)
        elif not self._known():
            self._refuse()
        elif path == "/metrics":
            self._answer(HTTPStatus.OK, self.answers.metrics(), CONTENT_TYPE)
        elif path == "/served":
            self._send(HTTPStatus.OK, self.answers.served())
        elif path == "/desired":
            self._send(HTTPStatus.OK, self.answers.desired())
        else:
            self._problem(HTTPStatus.NOT_FOUND, "not_found", f"there is no {path[:100]}")

    def do_POST(self) -> None:
        if not self._known():
            self._refuse()
            return
        size = self.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > BODY_BYTES_MAX:
            self._problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "bad_length", f"give at most {BODY_BYTES_MAX} bytes")
            return
        body = self.rfile.read(int(size))
        if self.path != "/apply":
            self._problem(HTTPStatus.NOT_FOUND, "not_found", f"there is no {self.path[:100]}")
            return
        try:
            wanted = msgspec.json.decode(body or b"{}", type=Apply)
            self._send(HTTPStatus.OK, self.answers.apply(wanted.version, wanted.adapter))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._problem(HTTPStatus.BAD_REQUEST, "bad_body", str(error))
        except HoldfastError as error:
            self._problem(_status(error), error.code, str(error))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
        logger.debug(format, *args)

    def _known(self) -> bool:
        wanted = type(self).token()
        if wanted is None:
            return True
        scheme, _, said = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(said.strip().encode(), wanted.encode())

    def _refuse(self) -> None:
        self._problem(HTTPStatus.UNAUTHORIZED, "unauthorized", "send Authorization: Bearer TOKEN")

    def _problem(self, status: HTTPStatus, code: str, message: str) -> None:
        self._send(status, {"error": {"code": code, "message": message}})

    def _send(self, status: HTTPStatus, body: object) -> None:
        self._answer(status, msgspec.json.encode(body) + b"\n", JSON)

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _status(error: HoldfastError) -> HTTPStatus:
    if isinstance(error, NotVisibleError):
        return HTTPStatus.NOT_FOUND
    if isinstance(error, UsageError):
        return HTTPStatus.BAD_REQUEST
    if isinstance(error, ConflictError):
        return HTTPStatus.CONFLICT
    return (
        HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, UnavailableError | TimedOutError) else HTTPStatus.CONFLICT
    )
