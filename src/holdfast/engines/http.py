"""One HTTP connection to a server that is not trusted: bounded in time and bytes, no redirects, errors sorted.

A server may answer slowly, half, with HTML, a redirect, 500 for ever or a huge body. Whatever it is, the caller gets
an EngineError within the time that it allowed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from holdfast.core.servers import Reaction
from holdfast.engines.contract import EngineError
from holdfast.errors import UsageError

BODY_BYTES_MAX = 16 * 2**20
SAID_MAX = 300
CONNECT_S = 5.0

T = TypeVar("T")


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
        except (msgspec.DecodeError, UnicodeDecodeError):
            text = ""
        text = text or self.body[: 4 * SAID_MAX].decode("utf-8", "replace")
        return " ".join(text.split())[:SAID_MAX]

    def decode(self, kind: type[T]) -> T:
        """The JSON body as `kind`. EngineError FIX_SETUP code "not_an_engine": it is something else."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
        limits = httpx.Limits(max_connections=4, max_keepalive_connections=2)
        self._client = httpx.Client(follow_redirects=False, limits=limits, trust_env=False)

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
                FIX_SETUP code "redirected", "huge_body", "unauthorized".
        """
        url = path if path.startswith(("http://", "https://")) else f"{self.url}{path}"
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        headers = {"Accept": "application/json"}
        token = self._token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = None
        if content is not None:
            body = msgspec.json.encode(content)
            headers["Content-Type"] = "application/json"
        try:
            answer = self._send(method, url, body, headers, query or {}, limit_s)
        except httpx.TimeoutException as error:
            raise _again(f"{url} did not answer within {limit_s:g} s", "too_slow") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _again(f"{url} cannot be reached: {str(error) or type(error).__name__}", "unreachable") from error
        _judge(answer, has_token=token is not None)
        return answer

    def _send(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: dict[str, str],
        query: Mapping[str, str],
        limit_s: float,
    ) -> Answer:
        deadline_s = time.monotonic() + limit_s
        timeout = httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s))
        request = self._client.build_request(
            method, url, content=body, headers=headers, params=dict(query) or None, timeout=timeout
        )
        response = self._client.send(request, stream=True)
        try:
            parts, size = [], 0
            for part in response.iter_bytes(65536):
                size += len(part)
                if size > BODY_BYTES_MAX:
                    raise EngineError(
                        f"{url} answers with more than {BODY_BYTES_MAX} bytes",
                        Reaction.FIX_SETUP,
                        code="huge_body",
                        hint="check the URL and --engine",
                    )
                if time.monotonic() > deadline_s:  # each part comes in time, but they never end
                    raise httpx.ReadTimeout("the whole answer takes too long", request=request)
                parts.append(part)
        finally:
            response.close()
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        return Answer(response.status_code, kind, b"".join(parts), url)

    def close(self) -> None:
        self._client.close()


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
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{url!r} is no server's address", code="bad_url", hint="give http://HOST:PORT")
    return url.rstrip("/")
