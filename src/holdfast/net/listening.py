"""Where a process listens, as people write it."""

from __future__ import annotations

from holdfast.errors import UsageError

LOOPBACK = "127.0.0.1"
PORT_MAX = 65535


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT"; "PORT" alone is one of the loopback. UsageError code "bad_listen"."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else LOOPBACK
    if not host or not (port.isascii() and port.isdigit() and len(port) <= 5) or int(port) > PORT_MAX:
        raise UsageError(f"{listen!r} is no place to listen on", code="bad_listen", hint="give HOST:PORT")
    return host, int(port)
