"""The store that needs nothing but torch: a TCPStore, held in memory by one process of the job.

What it cannot do by itself is added by the way in which keys are used:

    cell        a value is framed by its revision and a nonce, so that each value ever written is another one; that is
                what makes the server's compare-and-set (which compares values) a compare-and-set of revisions
    bell        a counter beside each cell, added to after a change of it: looking for a change costs a few bytes. A
                writer may die in between, so that the cell itself is read every second or so
    collection  a log of the names put into it, and a counter of its lines: who knows the count knows the names

Nobody ever waits inside the server. Values are framed by one byte, so that "empty" and "not there" differ.

The store lives as long as its process: the server's magic key tells it from any other that listens there later. A
connection that broke is made again; where nobody listens any more, or another server does, or nobody could be reached
for `lost_after_s`, the store is lost, and every later call says so.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn, TypeVar

import msgspec

from holdfast.errors import UnavailableError
from holdfast.rendezvous.kv import Cell, Traits, check_key, check_value
from holdfast.rendezvous.tcp_wire import Wire, WireError

TRAITS = Traits(kind="tcp", survives=False, look_s=0.05)
MAGIC_KEY = b"/holdfast/store"
RECONNECT_S = 2.0
REREAD_S = 1.0
CHUNK_KEYS = 1000
CHUNK_BYTES = 2**18  # the server parses an unfinished request anew with every packet

T = TypeVar("T")
_REVISION = struct.Struct(">Q8s")
_HERE = b"+"


class _Bell:
    """The bell's count when the cell stood at this revision, and when that was really read."""

    __slots__ = ("at_s", "count", "revision")

    def __init__(self, count: bytes, revision: int, at_s: float) -> None:
        self.count = count
        self.revision = revision
        self.at_s = at_s


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client waits for what (seconds).

    Attributes:
        call_s: a call, in all.
        stranger_s: what listens and does not prove to be a store, while it is being found.
        lost_after_s: a store that cannot be reached, before it is given up for lost.
    """

    call_s: float = 5.0
    stranger_s: float = 4.0
    lost_after_s: float = 30.0


class TcpStore:
    """One client of a TCPStore that `serve_tcp` made; see `KeyValueStore`. Made by `connect_tcp`."""

    def __init__(
        self, address: tuple[str, int], prefix: str, magic: bytes, wire: Wire, *, name: str, patience: Patience
    ) -> None:
        self._address = address
        self._prefix = f"{prefix}\n".encode()
        self._magic = magic
        self._name = name
        self._patience = patience
        self._lock = threading.Lock()
        self._wire: Wire | None = wire
        self._answered_s = time.monotonic()
        self._lost = ""
        self._bells: dict[str, _Bell] = {}
        self._frames: dict[str, bytes] = {}
        self._listed: set[tuple[str, str]] = set()
        self._names: dict[str, tuple[bytes, frozenset[str]]] = {}

    @property
    def traits(self) -> Traits:
        return TRAITS

    # --- cells

    def read(self, cell: str) -> Cell | None:
        frame = self._look(cell)
        return _cell(frame) if frame else None

    def _look(self, cell: str) -> bytes:
        """What stands there with its frame. The bell is read first, so that it rings for whatever comes later."""
        bell, key = self._key("bell", cell), self._key("cell", cell)
        count, frame = self._call(lambda wire: wire.get(bell, key))
        if frame:
            self._bells[cell] = _Bell(count, _revision(frame), time.monotonic())
            self._frames[cell] = frame
        return frame

    def newer(self, cell: str, revision: int) -> Cell | None:
        known, bell = self._bells.get(cell), self._key("bell", cell)
        if known is None or known.revision != revision or time.monotonic() - known.at_s > REREAD_S:
            found = self.read(cell)
        elif self._call(lambda wire: wire.get(bell))[0] == known.count:
            return None
        else:
            found = self.read(cell)
        return None if found is None or found.revision == revision else found

    def compare_and_set(self, cell: str, expected: int, value: bytes) -> Cell:
        check_value(value)
        key = self._key("cell", cell)
        frame = self._frames.get(cell, b"") if expected else b""
        if expected and _revision(frame) != expected:
            frame = self._look(cell)
            if frame and _revision(frame) != expected:
                return _cell(frame)
        if expected and not frame:
            self._gone(f"what was written to {cell} is gone")
        ours = _REVISION.pack(expected + 1, secrets.token_bytes(8)) + value
        stands = self._call(lambda wire: wire.compare_set(key, frame, ours), idempotent=False)
        if stands == frame:  # the server's answer where nothing stands
            self._gone(f"what was written to {cell} is gone")
        if stands != ours:
            return _cell(stands)
        self._frames[cell] = ours
        with contextlib.suppress(UnavailableError):  # it is set; who looks finds out within REREAD_S
            self._call(lambda wire: wire.add(self._key("bell", cell)))
        return _cell(ours)

    def watch(self, cell: str, changed: Callable[[], None]) -> Callable[[], None]:
        del cell, changed
        return lambda: None

    # --- plain keys

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        return self._get({key: self._key("plain", key) for key in keys})

    def put(self, values: Mapping[str, bytes]) -> None:
        for value in values.values():
            check_value(value)
        pairs = [(self._key("plain", key), _HERE + value) for key, value in values.items()]
        for chunk in _chunks(pairs):
            self._call(lambda wire, chunk=chunk: wire.set(chunk, asked=MAGIC_KEY))  # type: ignore[misc]

    def delete(self, keys: Iterable[str]) -> None:
        self._delete([self._key("plain", key) for key in keys])

    # --- collections

    def put_listed(self, collection: str, name: str, value: bytes) -> None:
        check_value(value)
        key = self._key("listed", collection, name)
        if (collection, name) in self._listed:
            self._call(lambda wire: wire.set([(key, _HERE + value)], asked=MAGIC_KEY))
            return
        log, counter = self._key("names", collection), self._key("count", collection)
        self._call(lambda wire: wire.set_and_append(key, _HERE + value, log, f"{name}\n".encode(), counter))
        self._listed.add((collection, name))

    def list_all(self, collection: str) -> dict[str, bytes]:
        return self.get_listed(collection, self.names(collection))

    def get_listed(self, collection: str, names: Iterable[str]) -> dict[str, bytes]:
        return self._get({name: self._key("listed", collection, name) for name in names})

    def names(self, collection: str) -> frozenset[str]:
        log, counter = self._key("names", collection), self._key("count", collection)
        known = self._names.get(collection)
        if known is not None and self._call(lambda wire: wire.get(counter))[0] == known[0]:
            return known[1]
        count, lines = self._call(lambda wire: wire.get(counter, log))
        found = frozenset(lines.decode().split("\n")) - {""}
        self._names[collection] = (count, found)
        return found

    def drop(self, collection: str) -> None:
        self._delete([self._key("listed", collection, name) for name in self.names(collection)])
        self._delete([self._key("names", collection), self._key("count", collection)])
        self._names.pop(collection, None)
        self._listed = {entry for entry in self._listed if entry[0] != collection}

    # --- the rest

    def tidy(self) -> None:
        """Nothing is kept of the past."""

    def close(self) -> None:
        with self._lock:
            self._lost = self._lost or "this client of the store was closed"
            self._disconnect()

    def _key(self, kind: str, *names: str) -> bytes:
        check_key(*names)
        return b"\n".join((self._prefix + kind.encode(), *(name.encode() for name in names)))

    def _get(self, keys: dict[str, bytes]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        names = list(keys)
        for start in range(0, len(names), CHUNK_KEYS):
            chunk = names[start : start + CHUNK_KEYS]
            values = self._call(lambda wire, chunk=chunk: wire.multi_get([keys[name] for name in chunk]))  # type: ignore[misc]
            found.update((name, value[1:]) for name, value in zip(chunk, values, strict=True) if value)
        return found

    def _delete(self, keys: list[bytes]) -> None:
        for start in range(0, len(keys), CHUNK_KEYS):
            chunk = keys[start : start + CHUNK_KEYS]
            self._call(lambda wire, chunk=chunk: wire.delete(chunk))  # type: ignore[misc]

    def _call(self, ask: Callable[[Wire], T], *, idempotent: bool = True) -> T:
        """`ask` over the connection; once more over a fresh one if that breaks and nothing can come of it twice."""
        deadline_s = time.monotonic() + self._patience.call_s
        with self._exclusively():
            try:
                return self._ask(ask, deadline_s)
            except WireError as error:
                self._disconnect()
                if not idempotent or deadline_s - time.monotonic() < RECONNECT_S / 2:
                    self._judge(deadline_s, error)
            try:
                return self._ask(ask, deadline_s)
            except WireError as error:
                self._disconnect()
                raise self._unavailable(error) from error

    def _ask(self, ask: Callable[[Wire], T], deadline_s: float) -> T:
        wire = self._connected(deadline_s)
        wire.deadline_s = deadline_s
        answer = ask(wire)
        self._answered_s = time.monotonic()
        return answer

    def _judge(self, deadline_s: float, error: WireError) -> NoReturn:
        """The call failed. See whether the store is lost, so that the next one need not."""
        with contextlib.suppress(WireError):
            self._connected(max(deadline_s, time.monotonic() + RECONNECT_S / 2))
        raise self._unavailable(error) from error

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=self._patience.call_s):
            raise UnavailableError(f"the store at {self._name} is slow", code="store_unavailable")
        try:
            if self._lost:
                raise UnavailableError(self._lost, code="store_lost")
            yield
        finally:
            self._lock.release()

    def _connected(self, deadline_s: float) -> Wire:
        if self._wire is not None:
            return self._wire
        try:
            wire = _reconnect(self._address, min(deadline_s, time.monotonic() + RECONNECT_S))
            try:
                magic = wire.get(MAGIC_KEY)[0]
            except WireError:
                wire.close()
                raise
        except WireError as error:
            if error.refused:
                self._gone("nobody listens there any more")
            if time.monotonic() - self._answered_s > self._patience.lost_after_s:
                self._gone(f"it has not answered for {self._patience.lost_after_s:g} s: {error}")
            raise
        if magic != self._magic:
            wire.close()
            self._gone("another server listens there now")
        self._wire = wire
        return wire

    def _disconnect(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _gone(self, why: str) -> NoReturn:
        self._lost = f"the host of the job's store, {self._name}, is gone: {why}"
        raise UnavailableError(self._lost, code="store_lost", hint="start the job again; etcd would have survived this")

    def _unavailable(self, error: WireError) -> UnavailableError:
        return UnavailableError(f"the store at {self._name}: {error}", code="store_unavailable")


def _reconnect(address: tuple[str, int], deadline_s: float) -> Wire:
    """A connection; asks twice before it says that nobody listens."""
    try:
        return Wire(address, deadline_s)
    except WireError as error:
        if not error.refused:
            raise
    time.sleep(0.1)
    return Wire(address, deadline_s)


def _revision(frame: bytes) -> int:
    return int(_REVISION.unpack_from(frame)[0]) if frame else 0


def _cell(frame: bytes) -> Cell:
    return Cell(frame[_REVISION.size :], _revision(frame))


def _chunks(pairs: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    chunk: list[tuple[bytes, bytes]] = []
    size = 0
    for pair in pairs:
        chunk.append(pair)
        size += len(pair[0]) + len(pair[1])
        if size > CHUNK_BYTES or len(chunk) >= CHUNK_KEYS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
