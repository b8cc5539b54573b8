"""Endpoints as people write them, and the addresses behind them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from holdfast.errors import UsageError

DOUBT_S = 10.0


def host_and_port(text: str) -> tuple[str, int]:
    """ "host:29400" or "[::1]:29400", taken apart. UsageError code "bad_endpoint": it is neither."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
        fits = bool(host and port) and parts.netloc == text and "@" not in text and text.isprintable()
    except ValueError:  # a port that is no port, a half-open bracket
        fits, host, port = False, None, None
    if not fits or host is None or port is None:
        raise UsageError(f"{text!r} is no endpoint", code="bad_endpoint", hint="write HOST:PORT, or [IPV6]:PORT")
    return host, port


def look_up(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[tuple[Any, ...]]:
    """What `getaddrinfo` finds, best first. UsageError code "bad_endpoint": no such host."""
    try:
        return list(socket.getaddrinfo(host, port, type=kind))
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(
            f"the host {host!r} does not resolve: {error}",
            code="bad_endpoint",
            hint="give HOST:PORT, HOST as the other nodes can resolve it",
        ) from error


def resolve(host: str, port: int) -> list[str]:
    """The host's addresses, best first. UsageError code "bad_endpoint": no such host."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in look_up(host, port)))


class AddressBook:
    """Addresses of hosts, so that no call waits for a name server that is slow or cut off.

    A host is looked up when it is entered; again, by a thread of its own, when its address is doubted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, list[str]] = {}
        self._asked_s: dict[str, float] = {}

    def enter(self, host: str) -> None:
        """UsageError code "bad_endpoint": no such host; it is then asked for again when doubted."""
        self._known[host] = []
        self._known[host] = resolve(host, 0)

    def address(self, host: str) -> str | None:
        """None: it is not known (yet)."""
        known = self._known.get(host)
        return known[0] if known else None

    def doubt(self, host: str) -> None:
        """That address did not do: take the next, and ask for news, but not every moment."""
        with self._lock:
            known = self._known.get(host, [])
            self._known[host] = known[1:] + known[:1]
            now_s = time.monotonic()
            if now_s - self._asked_s.get(host, -DOUBT_S) < DOUBT_S:
                return
            self._asked_s[host] = now_s
        threading.Thread(target=self._ask, args=(host,), name="holdfast-resolve", daemon=True).start()

    def _ask(self, host: str) -> None:
        with contextlib.suppress(UsageError):
            found = resolve(host, 0)
            with self._lock:
                if set(found) != set(self._known.get(host, [])):
                    self._known[host] = found
