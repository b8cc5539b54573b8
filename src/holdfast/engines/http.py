"""One HTTP connection to a server that is not trusted: bounded in time and bytes, no redirects, errors sorted.

A server may answer slowly, half, with HTML, a redirect, 500 for ever or a huge body. Whatever it is, the caller gets
an EngineError within the time that it allowed: every read from the socket, those of the headers too, is given only
what is left of it, so that a server that sends a byte now and then can't hold us.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlencode, urlsplit

import httpcore2
import msgspec

from holdfast.core.servers import Reaction
from holdfast.engines.contract import EngineError
from holdfast.errors import UsageError
from holdfast.net.bounded import BoundedBackend, Deadline

BODY_BYTES_MAX = 16 * 2**20
SAID_MAX = 300
CONNECT_S = 5.0
KEEP_ALIVE_S = 4.0  # uvicorn's own is 5: a connection that it is about to close is not used again

T = TypeVar("T")
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the last: "[[[[…"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long calls to a server may take in all (seconds).

    Attributes:
        call_s: a call that answers at once.
        load_s: one that reads weights, or computes.
        drain_s: one that waits for requests under way, which may be long.
    """

    call_s: float = 10.0
    load_s: float = 300.0
    drain_s: float = 600.0


DEFAULT_LIMITS = Limits()


class Answer(msgspec.Struct, frozen=True):
    """What a server answered; the body is at most BODY_BYTES_MAX bytes."""

    status: int
    kind: str
    body: bytes
    url: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def said(self) -> str:
        """The message of an error body, or the beginning of whatever it is, in one line."""
        try:
            body = msgspec.json.decode(self.body, type=_Error)
            text = body.error.message or body.detail or body.message or body.error_message
        except _NOT_JSON:
            text = ""
        text = text or self.body[: 4 * SAID_MAX].decode("utf-8", "replace")
        return " ".join(text.split())[:SAID_MAX]

    def decode(self, kind: type[T]) -> T:
        """The JSON body as `kind`. EngineError FIX_SETUP code "not_an_engine": it is something else."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except _NOT_JSON as error:
            raise EngineError(
                f"{self.url} answered {self.status} with {self.kind or 'no content type'}, not with what an inference "
                f"server says: {self.said[:80]!r}",
                Reaction.FIX_SETUP,
                code="not_an_engine",
                hint="check the URL and --engine",
            ) from error


class _Message(msgspec.Struct):
    message: str = ""


class _Error(msgspec.Struct):
    """The ways in which servers word an error: OpenAI's, FastAPI's, SGLang's two."""

    error: _Message = msgspec.field(default_factory=_Message)
    detail: str = ""
    message: str = ""
    error_message: str = ""


class Http:
    """Calls to one server.

    Args:
        url: its base, "http://host:port".
        token: a bearer token, or None; asked for at each call, so that a changed token is used at once.
        timeout_s: how long one call may take in all, if the call says nothing else (seconds).
    """

    def __init__(self, url: str, *, token: Callable[[], str | None] = lambda: None, timeout_s: float = 10.0) -> None:
        self.url = check_url(url)
        self._token = token
        self._timeout_s = timeout_s
        self._deadline = Deadline()
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpcore2.default_ssl_context() if self.url.startswith("https:") else None,
            max_connections=4,
            max_keepalive_connections=2,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=BoundedBackend(self._deadline),
        )

    def get(self, path: str, *, timeout_s: float | None = None) -> Answer:
        return self.call("GET", path, timeout_s=timeout_s)

    def post(self, path: str, content: object = None, *, timeout_s: float | None = None, **query: str) -> Answer:
        return self.call("POST", path, content, timeout_s=timeout_s, query=query)

    def call(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        timeout_s: float | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request and its whole answer, whatever its status.

        Raises:
            EngineError: LOOK_AGAIN code "unreachable", "too_slow": it may or may not have done it;
                FIX_SETUP code "redirected", "huge_body", "unauthorized", or the code of the token's error.
        """
        url = f"{self.url}{path}" + (f"?{urlencode(query)}" if query else "")
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        headers = {"Host": urlsplit(self.url).netloc, "Accept": "application/json", "Accept-Encoding": "identity"}
        token = self._bearer()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = b""
        if content is not None:
            body = msgspec.json.encode(content)
            headers["Content-Type"] = "application/json"
        if method != "GET":
            headers["Content-Length"] = str(len(body))
        try:
            answer = self._send(method, url, body, headers, limit_s)
        except httpcore2.TimeoutException as error:
            raise _again(f"{url} did not answer within {limit_s:g} s", "too_slow") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError) as error:
            raise _again(f"{url} cannot be reached: {str(error) or type(error).__name__}", "unreachable") from error
        _judge(answer, has_token=token is not None)
        return answer

    def _bearer(self) -> str | None:
        try:
            token = self._token()
        except UsageError as error:
            raise EngineError(error.args[0], Reaction.FIX_SETUP, code=error.code, hint=error.hint) from error
        if token is not None and not (token.isascii() and token.isprintable()):
            raise EngineError(
                "the token has characters that no header can carry",
                Reaction.FIX_SETUP,
                code="bad_token",
                hint="write it on one line, in ASCII",
            )
        return token

    def _send(self, method: str, url: str, body: bytes, headers: dict[str, str], limit_s: float) -> Answer:
        self._deadline.at_s = time.monotonic() + limit_s
        times = {"connect": min(CONNECT_S, limit_s), "read": limit_s, "write": limit_s, "pool": limit_s}
        with self._pool.stream(
            method, url, headers=list(headers.items()), content=body, extensions={"timeout": times}
        ) as response:
            parts, size = [], 0
            for part in response.iter_stream():
                size += len(part)
                if size > BODY_BYTES_MAX:
                    raise EngineError(
                        f"{url} answers with more than {BODY_BYTES_MAX} bytes",
                        Reaction.FIX_SETUP,
                        code="huge_body",
                        hint="check the URL and --engine",
                    )
                parts.append(part)
        said = {name.lower(): value for name, value in response.headers}
        kind = said.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()
        return Answer(response.status, kind, b"".join(parts), url)

    def close(self) -> None:
        self._pool.close()


def _again(message: str, code: str) -> EngineError:
    return EngineError(message, Reaction.LOOK_AGAIN, code=code, hint="is the server up, and the URL right?")


def _judge(answer: Answer, *, has_token: bool) -> None:
    if 300 <= answer.status < 400:
        raise EngineError(
            f"{answer.url} redirects (status {answer.status})",
            Reaction.FIX_SETUP,
            code="redirected",
            hint="give the server's own URL, not that of a proxy's login page",
        )
    if answer.status in (401, 403):
        raise EngineError(
            f"{answer.url} refuses us (status {answer.status}): {answer.said}",
            Reaction.FIX_SETUP,
            code="unauthorized",
            hint="is the token in --engine-token-file right?" if has_token else "give its key by --engine-token-file",
        )


def unexpected(answer: Answer, what: str) -> EngineError:
    """The error for an answer that fits nothing known: the server's trouble (5xx), or not the server we think it is."""
    message = f"{what}: {answer.url} answered {answer.status}: {answer.said}"
    if answer.status >= 500 or answer.status in (408, 425, 429):
        return EngineError(message, Reaction.LOOK_AGAIN, code="server_error", status=answer.status)
    return EngineError(
        message, Reaction.FIX_SETUP, code="not_an_engine", hint="check the URL and --engine", status=answer.status
    )


def check_url(url: str) -> str:
    """`url` without a trailing slash. UsageError code "bad_url": it is no http(s) address of a server."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no port, a half-open bracket
        fits = False
    if not fits or "@" in url or "?" in url or "#" in url or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"{url!r} is no server's address", code="bad_url", hint="give http://HOST:PORT")
    return url.rstrip("/")
