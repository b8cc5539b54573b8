"""Endpoints as people write them, and the addresses behind them."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from holdfast.errors import UsageError


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


def resolve(host: str, port: int) -> tuple[str, int]:
    """The address to connect to. UsageError code "bad_endpoint": no such host."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(
            f"{host!r} is no host that this machine knows: {error}",
            code="bad_endpoint",
            hint="give HOST:PORT, HOST as the other nodes can resolve it",
        ) from error
    return str(found[0][4][0]), port
