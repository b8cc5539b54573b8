"""Connections for httpcore2 of which nothing lasts beyond a deadline.

Its own timeouts are for one read each, so a server that sends a byte now and then could hold a call for ever. Here
every read, those of the headers too, is given only what is left of the time that the call was allowed.
"""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore2


class Deadline(threading.local):
    """When the call that this thread makes has to be over (monotonic clock)."""

    at_s = math.inf

    def bound(self, timeout_s: float | None, late: type[Exception]) -> float:
        left_s = self.at_s - time.monotonic()
        if left_s <= 0:
            raise late("the whole answer takes too long")
        return left_s if timeout_s is None else min(timeout_s, left_s)


class BoundedBackend(httpcore2.NetworkBackend):
    """Makes connections that keep to the deadline.

    Looking up a name does not: give `address`, which returns a host's address at once, or None if it is not known.
    """

    def __init__(self, deadline: Deadline, address: Callable[[str], str | None] | None = None) -> None:
        self._inner = httpcore2.SyncBackend()
        self._deadline = deadline
        self._address = address

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        timeout = self._deadline.bound(timeout, httpcore2.ConnectTimeout)
        if self._address is not None:
            found = self._address(host)
            if found is None:
                raise httpcore2.ConnectError(f"the address of {host} is not known")
            host = found
        return _Stream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options), self._deadline)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, inner: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.bound(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.bound(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        timeout = self._deadline.bound(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
