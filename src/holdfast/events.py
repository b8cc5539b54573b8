"""Events: what a process did and why, one JSON-lines file with one writer.

Each line is one object of one schema for all processes (`Event`); FORMAT.md lists the event names. Events are for
people and tools: nothing is decided by them, and a disk that refuses them never fails the protocol.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

logger = logging.getLogger(__name__)

EVENTS_BYTES_MAX = 64 * 2**20
EARLY_MAX = 100


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of an event file.

    Attributes:
        time: UTC wall clock, ISO 8601, for people; two machines' clocks are never compared.
        clock_s: this process's monotonic clock, for durations within one file.
        process: who writes this file, such as `publisher-c000003` or `consumer-rollout-0`.
        event: what happened; stable, lower_snake_case.
        version: the version that it is about.
        reason: why, in words.
        fields: the values behind it.
    """

    time: str
    clock_s: float
    process: str
    event: str
    version: str | None = None
    reason: str = ""
    fields: dict[str, Any] = {}


class EventLog:
    """Appends events to one file; `path` None writes none. Opens the file at the first event once it is `ready`.

    Before that the file must not be touched: asked for too early, the channel would stay "missing" on an NFS client.
    """

    def __init__(self, path: pathlib.Path | None, process: str, ready: Callable[[], bool] = lambda: True) -> None:
        self._path = path
        self._process = process
        self._ready = ready
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0
        self._early: list[bytes] = []  # said before the channel's directory was there

    def emit(self, event: str, reason: str = "", *, version: object = None, **fields: Any) -> None:
        """Append one event. Durability: none; a crash may lose the last lines."""
        line = Event(
            time=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            clock_s=round(time.monotonic(), 6),
            process=self._process,
            event=event,
            version=str(version) if version is not None else None,
            reason=reason,
            fields=fields,
        )
        logger.debug("%s %s %s", event, version or "", reason)
        if self._path is None:
            return
        data = msgspec.json.encode(line, enc_hook=str) + b"\n"
        with self._lock:
            if not self._ready():
                self._early = [*self._early, data][-EARLY_MAX:]
                return
            try:
                for line_bytes in (*self._early, data):
                    self._append(self._path, line_bytes)
                self._early.clear()
            except FileNotFoundError:
                self._early = [*self._early, data][-EARLY_MAX:]
            except OSError as error:
                logger.warning("events are off: %s: %s", self._path, error)
                self._path = None

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            self._path = None

    def _append(self, path: pathlib.Path, data: bytes) -> None:
        if self._descriptor is not None and self._size + len(data) > EVENTS_BYTES_MAX:
            os.close(self._descriptor)  # one older file is kept
            self._descriptor = None
            path.replace(path.with_suffix(".old.jsonl"))
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o644)
            self._size = os.fstat(self._descriptor).st_size
        self._size += os.write(self._descriptor, data)


def read_events(path: pathlib.Path) -> list[Event]:
    """The events of one file; a torn last line is left out."""
    events: list[Event] = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(msgspec.json.decode(line, type=Event))
        except msgspec.MsgspecError:
            continue
    return events
