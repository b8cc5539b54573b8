"""A sweeper's own file: its beat, and what it announces. Beside it lies a reserve, to be spent on a full disk."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

import msgspec

from holdfast.channel.channel import Channel
from holdfast.core.records import SweeperRecord, encode
from holdfast.errors import HoldfastError, UnavailableError
from holdfast.events import EventLog

RESERVE_BYTES = 64 * 1024
_FULL = ("errno_enospc", "errno_edquot")


class Announcement:
    """sweepers/<cycle>-<nonce>.json and its .reserve. Safe from several threads.

    The record is made first and removed last, so that a reserve is never there without the record that leads to it.

    Attributes:
        key: the name of this sweeper; "" before `enter` and after `leave`.
        failing: the last write failed, so nobody heard what was to be announced.
    """

    def __init__(self, channel: Channel, events: EventLog) -> None:
        self._channel = channel
        self._events = events
        self._lock = threading.Lock()
        self._beats = 0
        self._reserved = False
        self.key = ""
        self.failing = False

    def enter(self, cycle: int, record: Callable[[], SweeperRecord]) -> None:
        """Begin to be one of the channel's sweepers, under a new name."""
        self.key = f"{cycle:06d}-{secrets.token_hex(4)}"
        self.write(record)
        self.reserve()

    def write(self, record: Callable[[], SweeperRecord]) -> None:
        """Put what `record` says now, with the next beat; nothing once it has left. Durability: as `Storage.replace`.

        `record` is asked while nobody else writes: a beat must not bring back what was announced before.
        """
        with self._lock:
            if not self.key:
                return
            self._beats += 1
            data = encode(msgspec.structs.replace(record(), beat=self._beats))
            self.failing = True
            try:
                self._channel.claims.replace(self._path("json"), data)
            except UnavailableError as error:
                if error.code not in _FULL:
                    raise
                self._channel.claims.delete(self._path("reserve"))
                self._reserved = False
                self._events.emit("reserve_spent", str(error), code=error.code)
                self._channel.claims.replace(self._path("json"), data)
            self.failing = False

    def reserve(self) -> None:
        """Set some space aside, if it isn't yet."""
        with self._lock:
            if self._reserved or not self.key:
                return
            try:
                self._channel.claims.replace(self._path("reserve"), bytes(RESERVE_BYTES))
                self._reserved = True
            except UnavailableError as error:
                self._events.emit("no_reserve", str(error), code=error.code)

    def leave(self) -> None:
        """Withdraw everything; idempotent."""
        with self._lock:
            if not self.key:
                return
            reserve, record = self._path("reserve"), self._path("json")
            self.key, self._reserved = "", False
            try:
                self._channel.claims.delete(reserve)
                self._channel.claims.delete(record)
            except HoldfastError as error:
                self._events.emit("close_failed", str(error), code=error.code)

    def _path(self, suffix: str) -> str:
        return f"sweepers/{self.key}.{suffix}"
