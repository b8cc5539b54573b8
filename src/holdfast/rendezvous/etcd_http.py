"""etcd's HTTP/JSON gateway: one call, bounded in time, over several endpoints, with a token that is renewed.

A call goes to the endpoint that answered last, and on to the next where that fails. A call that may have been carried
out is repeated only if nothing comes of doing it twice. What etcd says with an error is sorted here, once:

    another endpoint, or later      no leader, timed out, overloaded, nobody there
    a new token                     401, "invalid auth token", "revision of auth store is old"
    the user's to mend              no rights, wrong password, a request too large, a certificate, not etcd at all

Source: etcd 3.4 to 3.6, `api/v3rpc/rpctypes/error.go` and the gateway's mapping of gRPC codes to statuses.
"""

from __future__ import annotations

import pathlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpcore2
import msgspec

from holdfast.errors import UnavailableError, UsageError
from holdfast.net.bounded import BoundedBackend, Deadline
from holdfast.rendezvous.endpoint import AddressBook, host_and_port

CALL_S = 3.0
ATTEMPT_S = 1.2  # of an idempotent call, while there are other endpoints
STREAM_SILENT_S = 60.0
ANSWER_BYTES_MAX = 2**28
KEEP_ALIVE_S = 30.0
_RIGHTS = ("permission denied", "user name is empty", "authentication failed", "authentication is not enabled")
_TOKEN = ("invalid auth token", "revision of auth store is old", "revision in header is old")
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

T = TypeVar("T")


class EtcdOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where etcd is and who we are there.

    Attributes:
        endpoints: base URLs of members, "http://host:2379" or "https://…".
        user: its name; with it `password_file`, whose first line is the password, read anew at each log-in.
        ca_file: certificates that may vouch for the servers; None: those of the system.
        cert_file, key_file: our own certificate.
        compact: let `tidy` compact etcd's history. It is the history of all who use that etcd.
    """

    endpoints: tuple[str, ...]
    user: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    compact: bool = True


class _Said(msgspec.Struct):
    message: str = ""
    error: str = ""
    code: int = 0


class _Token(msgspec.Struct):
    token: str = ""


class _Failed(Exception):
    """An attempt came to nothing. `sent`: etcd may have carried it out. `mend`: what the user has to mend, if that."""

    def __init__(self, why: str, *, sent: bool, mend: UsageError | None = None) -> None:
        super().__init__(why)
        self.sent = sent
        self.mend = mend


class _Stale(Exception):
    """The token is not good any more."""


class Gateway:
    """Calls to an etcd; for use by several threads.

    Made with UsageError code "bad_endpoint" (at least one host must be known now, if `hosts_known`), "bad_certificate".

    Raises (each call):
        UnavailableError: code "store_unavailable".
        UsageError: code "store_rights", "bad_certificate", "not_a_store", "value_too_large", "bad_password_file".
    """

    def __init__(self, options: EtcdOptions, *, hosts_known: bool = True) -> None:
        self.endpoints = options.endpoints
        self._book = AddressBook()
        self._enter_hosts(hosts_known)
        self._options = options
        self._ssl = _ssl_context(options)
        self._deadline = Deadline()
        self._pool = self._new_pool()
        self._lock = threading.Lock()
        self._current = 0
        self._token = ""

    def _enter_hosts(self, known_wanted: bool) -> None:
        """UsageError code "bad_endpoint": one is none, or not a single one of the hosts is known here."""
        unknown: UsageError | None = None
        known = 0
        for endpoint in self.endpoints:
            scheme, _, place = endpoint.partition("://")
            if scheme not in ("http", "https"):
                raise UsageError(f"{endpoint!r} is no endpoint", code="bad_endpoint", hint="write http://HOST:PORT")
            host = host_and_port(place)[0]
            try:
                self._book.enter(host)
                known += 1
            except UsageError as error:
                unknown = error
        if known_wanted and not known:
            raise unknown or UsageError("no endpoint", code="bad_endpoint", hint="write etcd://HOST:PORT,HOST:PORT")

    def call(self, path: str, body: object, kind: type[T], *, idempotent: bool = True) -> T:
        """POST `body`; the answer as `kind`. Over within CALL_S."""
        end_s = time.monotonic() + CALL_S
        content = msgspec.json.encode(body)
        failed = _Failed("no time", sent=False)
        renewals = 0
        for _ in range(2 * len(self.endpoints) + 2):
            current = self._current
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                break
            several = idempotent and len(self.endpoints) > 1
            try:
                return self._attempt(current, path, content, kind, min(left_s, ATTEMPT_S) if several else left_s)
            except _Stale as error:
                failed = _Failed(str(error), sent=False)
                renewals += 1
                if renewals > 2:
                    break
            except _Failed as error:
                failed = error
                self._leave(current)
                if error.sent and not idempotent:
                    break
        if failed.mend is not None:
            raise failed.mend from failed
        raise UnavailableError(f"etcd at {self.name}: {failed}", code="store_unavailable") from failed

    @property
    def name(self) -> str:
        return ", ".join(urlsplit(endpoint).netloc for endpoint in self.endpoints)

    def ask(self, endpoint: str, path: str, kind: type[T], *, limit_s: float, body: object | None = None) -> T:
        """One attempt at this very endpoint: GET, or POST `body`. The same errors; field "hung_up": it took the request
        and closed the connection without a word, as what speaks another protocol does."""
        content = None if body is None else msgspec.json.encode(body)
        try:
            return _decode(endpoint, *self._send(endpoint, path, content, limit_s, token=""), kind)
        except (_Failed, _Stale) as error:
            if isinstance(error, _Failed) and error.mend is not None:
                raise error.mend from error
            raise UnavailableError(
                f"etcd at {urlsplit(endpoint).netloc}: {error}",
                code="store_unavailable",
                hung_up=isinstance(error.__cause__, httpcore2.RemoteProtocolError),
            ) from error

    def follow(self, path: str, body: object, opened: Callable[[Any], None]) -> Iterator[bytes]:
        """POST, and the lines of the answer as they come; `opened` gets the socket, to shut it down from elsewhere.

        Ends, or raises UnavailableError or UsageError, when the connection does.
        """
        current = self._current
        endpoint = self.endpoints[current]
        pool = self._new_pool()
        self._deadline.at_s = time.monotonic() + CALL_S
        left = b""
        try:
            headers = self._headers(endpoint, self._log_in(endpoint, CALL_S))
            times = {"connect": CALL_S, "read": STREAM_SILENT_S, "write": CALL_S, "pool": CALL_S}
            with pool.stream(
                "POST",
                endpoint + path,
                headers=headers,
                content=msgspec.json.encode(body),
                extensions={"timeout": times},
            ) as response:
                opened(response.extensions["network_stream"].get_extra_info("socket"))
                self._deadline.at_s = float("inf")
                for part in response.iter_stream():
                    *lines, left = (left + part).split(b"\n")
                    yield from lines
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError, OSError, _Failed) as error:
            self._leave(current)
            raise UnavailableError(f"etcd at {endpoint}: {error}", code="store_unavailable") from error
        finally:
            pool.close()

    def forget_token(self) -> None:
        self._token = ""

    def close(self) -> None:
        self._pool.close()

    def _attempt(self, current: int, path: str, content: bytes, kind: type[T], limit_s: float) -> T:
        end_s = time.monotonic() + limit_s
        endpoint = self.endpoints[current]
        token = self._log_in(endpoint, limit_s)
        try:
            return _decode(endpoint, *self._send(endpoint, path, content, end_s - time.monotonic(), token=token), kind)
        except _Stale:
            if self._token == token:
                self._token = ""
            raise

    def _log_in(self, endpoint: str, limit_s: float) -> str:
        """The token; "" without a user."""
        options = self._options
        if options.user is None or self._token:
            return self._token
        body = msgspec.json.encode({"name": options.user, "password": _password(options.password_file)})
        status, said = self._send(endpoint, "/v3/auth/authenticate", body, limit_s, token="")
        if b"authentication is not enabled" in said:
            return ""  # then nobody needs one
        self._token = _decode(endpoint, status, said, _Token).token
        return self._token

    def _leave(self, current: int) -> None:
        with self._lock:
            if self._current == current:
                self._current = (current + 1) % len(self.endpoints)

    def _headers(self, endpoint: str, token: str) -> list[tuple[str, str]]:
        headers = [("Host", urlsplit(endpoint).netloc), ("Content-Type", "application/json")]
        return [*headers, ("Authorization", token)] if token else headers

    def _new_pool(self) -> httpcore2.ConnectionPool:
        return httpcore2.ConnectionPool(
            ssl_context=self._ssl,
            max_connections=16,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=BoundedBackend(self._deadline, self._book.address),
        )

    def _send(
        self, endpoint: str, path: str, content: bytes | None, limit_s: float, *, token: str
    ) -> tuple[int, bytes]:
        self._deadline.at_s = time.monotonic() + limit_s
        headers = self._headers(endpoint, token)
        if content is not None:
            headers.append(("Content-Length", str(len(content))))
        times = dict.fromkeys(("connect", "read", "write", "pool"), limit_s)
        parts, size = [], 0
        try:
            with self._pool.stream(
                "GET" if content is None else "POST",
                endpoint + path,
                headers=headers,
                content=content,
                extensions={"timeout": times},
            ) as response:
                for part in response.iter_stream():
                    size += len(part)
                    if size > ANSWER_BYTES_MAX:
                        raise _Failed("its answer is huge", sent=True, mend=not_etcd(endpoint, "a huge answer"))
                    parts.append(part)
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout, httpcore2.PoolTimeout) as error:
            self._book.doubt(urlsplit(endpoint).hostname or "")
            raise _Failed(f"cannot be reached: {error}", sent=False, mend=_mend_tls(endpoint, error)) from error
        except httpcore2.TimeoutException as error:
            raise _Failed("does not answer in time", sent=True) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError) as error:
            raise _Failed(str(error) or type(error).__name__, sent=True, mend=_mend_tls(endpoint, error)) from error
        return response.status, b"".join(parts)


def _decode(endpoint: str, status: int, content: bytes, kind: type[T]) -> T:
    try:
        if status == 200:
            return msgspec.json.decode(content, type=kind, strict=False)
        said = msgspec.json.decode(content, type=_Said)
    except _NOT_JSON:
        if status >= 500:  # a proxy whose etcd is away
            raise _Failed(f"status {status}", sent=True) from None
        raise _Failed("not etcd", sent=False, mend=not_etcd(endpoint, f"status {status}")) from None
    text = said.message or said.error
    if said.code == 16 or any(part in text for part in _TOKEN):
        raise _Stale(text)
    if status == 403 or any(part in text for part in _RIGHTS):
        raise _Failed(
            text,
            sent=False,
            mend=UsageError(
                f"etcd at {urlsplit(endpoint).netloc} refuses us: {text}",
                code="store_rights",
                hint="give a user who may read and write below the prefix, and the file with its password",
            ),
        )
    if "request is too large" in text:
        raise _Failed(text, sent=False, mend=UsageError(f"etcd: {text}", code="value_too_large"))
    if "database space exceeded" in text:
        text += "; compact and defragment it, then `etcdctl alarm disarm`"
    if status < 500 and not text:
        raise _Failed("not etcd", sent=False, mend=not_etcd(endpoint, f"status {status}"))
    raise _Failed(text or f"status {status}", sent=True)


def not_etcd(endpoint: str, why: str) -> UsageError:
    return UsageError(
        f"what listens at {urlsplit(endpoint).netloc or endpoint} is no etcd: {why}",
        code="not_a_store",
        hint="check the address; etcd:// is for plain HTTP, etcds:// for TLS",
    )


def _mend_tls(endpoint: str, error: BaseException | None) -> UsageError | None:
    """What is to be mended if TLS is why `error` came."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if error is None or isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return None
    text = str(error).lower()
    if "wrong version" in text or "record layer" in text or "unknown protocol" in text or "http request" in text:
        return not_etcd(endpoint, "it does not speak TLS")
    if isinstance(error, ssl.SSLCertVerificationError) or "alert" in text or "certificate" in text:
        return UsageError(
            f"TLS with {urlsplit(endpoint).netloc} failed: {error}",
            code="bad_certificate",
            hint="check the CA file, the name in the server's certificate, and our own certificate and key",
        )
    return None


def _ssl_context(options: EtcdOptions) -> ssl.SSLContext | None:
    if not any(endpoint.startswith("https:") for endpoint in options.endpoints):
        return None
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the certificates for etcd cannot be read: {error}",
            code="bad_certificate",
            hint="PEM files: the CA's, our certificate and its key",
        ) from error
    return context


def _password(path: str | None) -> str:
    if path is None:
        raise UsageError("etcd's user needs a password", code="bad_password_file", hint="give the file that has it")
    try:
        return pathlib.Path(path).read_text(encoding="utf-8").split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the password in {path} cannot be read: {error}", code="bad_password_file", hint="one line of text"
        ) from error
