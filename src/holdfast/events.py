"""Events: what a process did and why, one JSON-lines file with one writer.

Each line is one object of one schema for all processes (`Event`); FORMAT.md lists the event names. Events are for
people and tools: nothing is decided by them, and a disk that refuses them never fails the protocol.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import pathlib
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

logger = logging.getLogger(__name__)

EVENTS_BYTES_MAX = 64 * 2**20
EARLY_MAX = 100
QUEUE_MAX = 10_000
ALIVE_S = 30.0  # how often a file that has nothing new is touched: its time of change says that its writer lives
SETTLE_S = 0.5  # how often a directory that is not there yet is looked for
CLOSE_S = 2.0


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
        self._listeners: tuple[Callable[[Event], None], ...] = ()

    def listen(self, hear: Callable[[Event], None]) -> None:
        """From now on tell `hear` every event, written or not: at once, by whoever says it, so it is quick and never
        raises."""
        self._listeners = (*self._listeners, hear)

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
        for hear in self._listeners:
            hear(line)
        if self._path is None:
            return
        self._take(msgspec.json.encode(line, enc_hook=str) + b"\n")

    def close(self) -> None:
        with self._lock:
            if self._early:
                self._write(self._early)
            if self._early and self._path is not None:
                logger.warning("%d events were not written: there is no %s", len(self._early), self._path.parent)
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            self._path = None

    def _take(self, data: bytes) -> None:
        with self._lock:
            self._write([*self._early, data])

    def _write(self, lines: list[bytes]) -> None:
        """All of `lines`, or keep them as early ones."""
        self._early = lines[-EARLY_MAX:]
        if self._path is None or not self._ready():
            return
        try:
            for data in lines:
                self._append(self._path, data)
            self._early = []
        except FileNotFoundError:
            return
        except IsADirectoryError:
            self._path = self._path / file_name(self._process)
            self._write(lines)
        except OSError as error:
            logger.warning("events are off: %s: %s", self._path, error)
            self._path = None
            self._early = []

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


class PatientLog(EventLog):
    """Writes by a thread of its own: whoever speaks goes on while the storage hangs, and may then be silent for hours.

    What was said before the directory was there is written within about `SETTLE_S` once it is. While there is nothing
    to say the file is touched, so that its time of change tells a process that is quiet from one that is gone.
    """

    def __init__(self, path: pathlib.Path, process: str, ready: Callable[[], bool] = lambda: True) -> None:
        super().__init__(path, process, ready)
        self._said: queue.Queue[bytes | None] = queue.Queue(QUEUE_MAX)
        self._thread = threading.Thread(target=self._work, name="holdfast-events", daemon=True)
        self._starting = threading.Lock()

    def close(self) -> None:
        """Write what is left, for `CLOSE_S` at most."""
        if self._thread.ident is None:
            self._path = None
            return
        with suppress(queue.Full):
            self._said.put_nowait(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("the last events may be missing: the storage hangs")

    def _take(self, data: bytes) -> None:
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()
        with suppress(queue.Full):  # the storage has hung for very long: the newest are lost
            self._said.put_nowait(data)

    def _touch(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.utime(self._descriptor)

    def _work(self) -> None:
        while True:
            try:
                data = self._said.get(timeout=SETTLE_S if self._early else ALIVE_S)
            except queue.Empty:
                with self._lock:
                    self._write(self._early)
                    self._touch()
                continue
            if data is None:
                break
            super()._take(data)
        super().close()


def file_name(process: str) -> str:
    """A name for an event file of `process` that no other process has."""
    return f"{process}-{socket.gethostname()}-{secrets.token_hex(4)}.jsonl"


def log_to(place: str, process: str) -> EventLog:
    """The patient event log of `process` at `place`: a file, or a directory in which it makes a file of its own.

    What ends in "/", has no ending such as ".jsonl", or is a directory, is a directory. It is never made here, and may
    come later: the last `EARLY_MAX` events are kept until then.
    """
    path = pathlib.Path(os.path.abspath(place))  # not resolve(): it asks for names that may not be there yet
    if place.endswith("/") or not path.suffix:
        path = path / file_name(process)
    return PatientLog(path, process, ready=Appearing(path.parent))


class Appearing:
    """Says whether a directory is there, without asking for it by name before a listing shows it.

    An NFS client that asks too early keeps "missing" for 30 s and more, for all processes of its machine.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._left = list(directory.parts[1:])
        self._seen = directory.anchor or "."

    def __call__(self) -> bool:
        while self._left:
            if not _lists(self._seen, self._left[0]):
                return False
            self._seen = os.path.join(self._seen, self._left.pop(0))
        return True


def _lists(directory: str, name: str) -> bool:
    """Whether a listing of `directory` shows `name`; True where it may not be listed, but perhaps be passed through."""
    try:
        with os.scandir(directory) as entries:
            return any(entry.name == name for entry in entries)
    except PermissionError:
        return True
    except OSError:
        return False


def read_events(path: pathlib.Path) -> list[Event]:
    """The events of one file; a torn last line is left out."""
    events: list[Event] = []
    for line in path.read_bytes().splitlines():
        try:
            events.append(msgspec.json.decode(line, type=Event))
        except msgspec.MsgspecError:
            continue
    return events
