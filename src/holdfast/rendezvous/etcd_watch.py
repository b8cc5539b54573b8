"""A watch on one key of etcd: a thread with a request that never ends.

It tells of every event, and each time that it is connected anew, for what it missed meanwhile. It decides nothing, and
what it doesn't tell of is found by looking now and then.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from holdfast.errors import UnavailableError, UsageError
from holdfast.rendezvous.etcd_http import Gateway

PAUSE_S = 1.0
logger = logging.getLogger(__name__)


class _Result(msgspec.Struct):
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    events: list[msgspec.Raw] = []


class _Message(msgspec.Struct):
    result: _Result = msgspec.field(default_factory=_Result)


class EtcdWatch:
    """Calls `changed` until `end`."""

    def __init__(self, gateway: Gateway, key: str, changed: Callable[[], None]) -> None:
        self._gateway = gateway
        self._body = {"create_request": {"key": key}}
        self._changed = changed
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._socket: Any = None
        self._thread = threading.Thread(target=self._run, name="holdfast-etcd-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):  # closed already
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _opened(self, opened: Any) -> None:
        with self._lock:
            self._socket = opened
        if self._ended.is_set():
            raise UnavailableError("the watch has ended", code="store_unavailable")

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                for line in self._gateway.follow("/v3/watch", self._body, self._opened):
                    self._heard(line)
            except (UnavailableError, UsageError, msgspec.DecodeError) as error:
                logger.debug("watch: %s", error)
            finally:
                with self._lock:
                    self._socket = None
            self._ended.wait(PAUSE_S)

    def _heard(self, line: bytes) -> None:
        if not line.strip():
            return
        result = msgspec.json.decode(line, type=_Message).result
        if result.canceled:
            self._gateway.forget_token()  # it may be why; if not, a new one does no harm
            raise UnavailableError(f"canceled: {result.cancel_reason}", code="store_unavailable")
        if result.created or result.events:
            self._changed()
