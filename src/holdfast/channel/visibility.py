"""How late one machine's changes become visible to another, measured without comparing their clocks.

Two processes meet in a directory of their own below PATH: a writer on one machine, a reader on the other. Round after
round the reader looks once, so that its caches are warm and may be stale; lets a pause pass; notes its own clock; and
*asks*, by making a file. The writer, which looks for such files all the time, then does one thing that the protocol
does: it makes a record under a new name, replaces a record, or renames a directory into place. The reader looks, as a
consumer looks, until it sees that, and notes its own clock again. What has passed between is

    lateness of the ask + the writer's work + lateness of the answer + both sides' polling,

none of them negative, so it bounds the lateness in *either* direction from above; only the reader's
clock was read. The pauses grow, since caches trust a directory for longer the longer it stood still.

The bound is the largest time that was seen, doubled (a longer run might have seen a larger one), and 1 s at least.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
import socket
import statistics
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from typing import TypeVar

import msgspec

from holdfast.channel.beats import clock_s
from holdfast.channel.channel import CHANNEL, Channel
from holdfast.channel.posix import PosixStorage
from holdfast.channel.rooted import os_errors
from holdfast.core.manifest import MANIFEST
from holdfast.errors import ConflictError, IntegrityError, NotVisibleError, TimedOutError, UnavailableError

SESSION = ".holdfast-doctor-visibility"
SAFETY_FACTOR = 2.0
BOUND_MIN_S = 1.0
POLL_S = 0.02
BEAT_S = 0.5
ROUND_S_MAX = 180.0
PAUSES_S = (0.0, 0.1, 0.5, 1.0, 0.0, 3.5, 0.2, 7.0, 0.0, 13.0, 0.3, 31.0, 61.0)
MEASURES_MAX = 64
_RECORD_BYTES_MAX = 64 * 1024
_NEW_NAME, _REPLACED, _DIRECTORY, _LISTING = "new name", "replaced record", "directory renamed in", "listing"
_ASKED = (_NEW_NAME, _REPLACED, _DIRECTORY)
_PAYLOAD = b"payload of a version\n" * 1000

Say = Callable[[str], None]
T = TypeVar("T")


class Lateness(msgspec.Struct, frozen=True, kw_only=True):
    """How late changes of one kind were seen, at most: round trips, on the reader's clock (seconds)."""

    way: str
    rounds: int
    median_s: float
    largest_s: float


class Visibility(msgspec.Struct, frozen=True, kw_only=True):
    """What both sides report. `bound_s` is null where both are on one mount, which tells nothing of other machines."""

    path: str
    role: str
    writer_host: str
    reader_host: str
    same_mount: bool
    ways: list[Lateness]
    bound_s: float | None
    safety_factor: float = SAFETY_FACTOR
    stored: bool = False
    stored_bound_s: float | None = None


class _Hello(msgspec.Struct, frozen=True, kw_only=True):
    nonce: str
    host_name: str
    host: str
    device: str
    beat: int = 0


class _Ask(msgspec.Struct, frozen=True, kw_only=True):
    round: int
    way: str


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    ways: tuple[Lateness, ...]
    reader: _Hello


def bound_from(ways: Iterable[Lateness]) -> float:
    """The visibility bound (seconds) that these measurements support."""
    largest_s = max(one.largest_s for one in ways)
    return max(BOUND_MIN_S, math.ceil(largest_s * SAFETY_FACTOR * 10) / 10)


class Writer:
    """The side that makes changes when it is asked to. It begins, and waits `patience_s` seconds for the reader."""

    def __init__(
        self, path: str | os.PathLike[str], *, patience_s: float = 600.0, say: Say = lambda text: None
    ) -> None:
        self._path = os.path.abspath(os.fspath(path))
        self._place = os.path.join(self._path, SESSION)
        self._store = PosixStorage(self._place)
        self._patience_s = patience_s
        self._say = say
        self._hello = _hello(PosixStorage(self._path))
        self._beaten_s = -math.inf

    def run(self) -> Visibility:
        """Answer until the reader is done; remove all that was made for it.

        Raises:
            ConflictError: code "measuring": another measurement is going on here.
            TimedOutError: no reader came, or it stopped asking.
            UnavailableError: this user cannot write here.
        """
        self._make_place()
        try:
            self._say(f"now run on the other machine: holdfast doctor {self._path} --read")
            done = self._answer()
        finally:
            with os_errors(SESSION), suppress(FileNotFoundError):
                shutil.rmtree(self._place)
        return _result(self._path, "write", self._hello, done.reader, done.ways)

    def _make_place(self) -> None:
        if any(entry.name == SESSION for entry in PosixStorage(self._path).list("")):
            _refuse_living(self._store)
            with os_errors(SESSION):
                shutil.rmtree(self._place)
        for directory in ("", "cycles", "versions", "staging"):
            self._store.make_directory(directory, 0o755)
        self._store.make_directory("reader", 0o1777)
        self._beat()

    def _beat(self) -> None:
        if clock_s() - self._beaten_s >= BEAT_S:
            self._beaten_s = clock_s()
            self._hello = msgspec.structs.replace(self._hello, beat=self._hello.beat + 1)
            self._store.replace("hello.json", msgspec.json.encode(self._hello))

    def _answer(self) -> _Done:
        answered, heard_s = 0, clock_s()
        while True:
            names = {entry.name for entry in self._store.list("reader")}
            if "done.json" in names:
                return _read(self._store, "reader/done.json", _Done)
            if f"ask-{answered + 1:06d}.json" in names:
                answered += 1
                heard_s = clock_s()
                self._do(_read(self._store, f"reader/ask-{answered:06d}.json", _Ask).way, answered)
            elif clock_s() - heard_s > self._patience_s:
                raise TimedOutError(
                    f"no reader asked for anything in {self._patience_s:g} s",
                    code="no_reader",
                    hint=f"run `holdfast doctor {self._path} --read` on the other machine meanwhile",
                )
            self._beat()
            threading.Event().wait(POLL_S)

    def _do(self, way: str, number: int) -> None:
        """One change, by the very call of the storage contract that the protocol makes it with."""
        if way == _NEW_NAME:
            self._store.create(f"cycles/{number:06d}.json", _token(number))
        elif way == _REPLACED:
            self._store.replace("CURRENT", _token(number))
        elif way == _DIRECTORY:
            name = f"version-{number:06d}"
            tree = self._store.begin_tree(name, name)
            with closing(tree.file("weights/w.bin")) as file:
                file.write_at(0, memoryview(_PAYLOAD))
            self._store.commit_tree(name, name, _token(number))


class Reader:
    """The side that asks, looks and counts, for `seconds` seconds or a little more."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        seconds: float = 60.0,
        patience_s: float = 600.0,
        say: Say = lambda text: None,
    ) -> None:
        self._path = os.path.abspath(os.fspath(path))
        self._above = PosixStorage(self._path)
        self._store = PosixStorage(os.path.join(self._path, SESSION))
        self._seconds = seconds
        self._patience_s = patience_s
        self._say = say
        self._seen: dict[str, list[float]] = {way: [] for way in (_LISTING, *_ASKED)}

    def run(self) -> Visibility:
        """Measure, and leave the result for the writer to store.

        Raises:
            TimedOutError: no writer was found, or what it wrote was not seen in 180 s.
            UnavailableError: code "writer_left"; or this user cannot write here, so that nothing can be measured.
        """
        writer = self._meet()
        self._say(f"measuring with {writer.host_name} for {self._seconds:g} s")
        began_s, number = clock_s(), 0
        for pause_s in self._pauses(began_s):
            for way in _ASKED:
                number += 1
                self._round(way, number, pause_s)
        ways = tuple(_lateness(way, seen) for way, seen in self._seen.items())
        own = _hello(self._above)
        self._store.create("reader/done.json", msgspec.json.encode(_Done(ways=ways, reader=own)))
        return _result(self._path, "read", writer, own, ways)

    def _pauses(self, began_s: float) -> Iterable[float]:
        """Every pause that fits into the time that is left; one turn at least, and short turns to the end."""
        yield 0.0
        for turn in range(MEASURES_MAX):
            left_s = self._seconds - (clock_s() - began_s)
            if left_s <= 0:
                return
            pause_s = PAUSES_S[turn % len(PAUSES_S)]
            yield pause_s if pause_s * len(_ASKED) < left_s else min(0.2, left_s / 4)

    def _meet(self) -> _Hello:
        """The writer of a session that is alive: its beat changes while it is watched."""
        first: _Hello | None = None

        def alive() -> _Hello | None:
            nonlocal first
            if not any(entry.name == SESSION for entry in self._above.list("")):
                return None
            self._store.list("")
            now = _read(self._store, "hello.json", _Hello)
            if first is None or first.nonce != now.nonce:
                first = now
            return now if now.beat != first.beat else None

        return _until(
            alive, self._patience_s, f"no writer at {self._path}", "`holdfast doctor PATH --write` there first"
        )

    def _round(self, way: str, number: int, pause_s: float) -> None:
        look = {_NEW_NAME: self._new_name, _REPLACED: self._replaced, _DIRECTORY: self._directory}[way]
        self._try(lambda: look(0, 0.0))  # fills the caches
        threading.Event().wait(pause_s)
        began_s = clock_s()
        self._ask(number, way)
        _until(
            lambda: self._try(lambda: look(number, began_s)),
            ROUND_S_MAX,
            f"what {way!r} stands for was not seen",
            "look whether the writer still runs; if it does, Holdfast cannot work between these two mounts",
        )
        self._seen[way].append(clock_s() - began_s)

    def _try(self, look: Callable[[], bool]) -> bool | None:
        """Whether `look` saw it; None: not yet."""
        try:
            if look():
                return True
        except (NotVisibleError, IntegrityError):
            pass
        self._require_session()
        return None

    def _require_session(self) -> None:
        if not any(entry.name == SESSION for entry in self._above.list("")):
            raise UnavailableError(
                "the writer has left, and took the place of the measurement with it",
                code="writer_left",
                hint="start both sides again",
            )

    def _ask(self, number: int, way: str) -> None:
        try:
            self._store.create(f"reader/ask-{number:06d}.json", msgspec.json.encode(_Ask(round=number, way=way)))
        except NotVisibleError:
            self._require_session()
            raise

    def _new_name(self, number: int, began_s: float) -> bool:
        name = f"{number:06d}.json"
        if not any(entry.name == name for entry in self._store.list("cycles")):
            return False
        if len(self._seen[_LISTING]) == len(self._seen[_NEW_NAME]):
            self._seen[_LISTING].append(clock_s() - began_s)
        return self._store.read(f"cycles/{name}", limit_bytes=_RECORD_BYTES_MAX) == _token(number)

    def _replaced(self, number: int, began_s: float) -> bool:
        if not any(entry.name == "CURRENT" for entry in self._store.list("")):
            return False
        return self._store.read("CURRENT", limit_bytes=_RECORD_BYTES_MAX) == _token(number)

    def _directory(self, number: int, began_s: float) -> bool:
        name = f"version-{number:06d}"
        if name not in self._store.list_trees():
            return False
        inside = f"versions/{name}"
        self._store.list(inside)
        self._store.list(f"{inside}/weights")
        if self._store.read(f"{inside}/{MANIFEST}", limit_bytes=_RECORD_BYTES_MAX) != _token(number):
            return False
        with closing(self._store.open(f"{inside}/weights/w.bin")) as file:
            data = bytearray(len(_PAYLOAD))
            return file.read_into(0, memoryview(data)) == len(_PAYLOAD) and bytes(data) == _PAYLOAD


def store_bound(found: Visibility) -> Visibility:
    """Record the bound in the channel at `found.path`, if it is one; `found` with what is stored now.

    Each machine's measurement is kept beside the others', and the channel's bound is the largest of them. Measuring
    one machine again replaces its own only.
    """
    if found.bound_s is None or not any(entry.name == CHANNEL for entry in PosixStorage(found.path).list("")):
        return found
    channel = Channel(found.path)
    known = channel.open().probed.get("visibility")
    measured = dict(known) if isinstance(known, dict) else {}
    measured.pop(found.reader_host, None)
    newest = list(measured.items())[-MEASURES_MAX:]
    ways = {one.way: one.largest_s for one in found.ways}
    measured = {**dict(newest), found.reader_host: {"bound_s": found.bound_s, "largest_s": ways}}
    bounds = [entry["bound_s"] for entry in measured.values() if isinstance(entry, dict) and "bound_s" in entry]
    bound_s = max(float(bound) for bound in bounds if isinstance(bound, int | float))
    channel.store_bound(bound_s, {"visibility": measured})
    return msgspec.structs.replace(found, stored=True, stored_bound_s=bound_s)


def _result(path: str, role: str, writer: _Hello, reader: _Hello, ways: Iterable[Lateness]) -> Visibility:
    same = (writer.host, writer.device) == (reader.host, reader.device)
    return Visibility(
        path=path,
        role=role,
        writer_host=writer.host_name,
        reader_host=reader.host_name,
        same_mount=same,
        ways=list(ways),
        bound_s=None if same else bound_from(ways),
    )


def _hello(store: PosixStorage) -> _Hello:
    mount = store.mount()
    return _Hello(
        nonce=secrets.token_hex(8), host_name=socket.gethostname()[:100], host=mount.host, device=mount.device
    )


def _refuse_living(store: PosixStorage) -> None:
    """A session that a killed writer left is taken away; one whose beat still changes is not."""
    beats: set[bytes] = set()
    for _ in range(4):
        if any(entry.name == "hello.json" for entry in store.list("")):
            beats.add(store.read("hello.json", limit_bytes=_RECORD_BYTES_MAX))
        threading.Event().wait(BEAT_S)
    if len(beats) > 1:
        raise ConflictError(
            "another measurement is going on here", code="measuring", hint="wait until its writer has ended"
        )


def _until(look: Callable[[], T | None], timeout_s: float, what: str, hint: str) -> T:
    deadline_s = clock_s() + timeout_s
    while True:
        try:
            found = look()
        except (NotVisibleError, IntegrityError):
            found = None
        if found is not None:
            return found
        if clock_s() >= deadline_s:
            raise TimedOutError(f"{what} within {timeout_s:g} s", code="not_seen", hint=hint)
        threading.Event().wait(POLL_S)


def _read(store: PosixStorage, path: str, kind: type[T]) -> T:
    data = store.read(path, limit_bytes=_RECORD_BYTES_MAX)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: {error}", code="bad_record", path=path) from error


def _lateness(way: str, seen: list[float]) -> Lateness:
    return Lateness(
        way=way, rounds=len(seen), median_s=round(statistics.median(seen), 4), largest_s=round(max(seen), 4)
    )


def _token(number: int) -> bytes:
    return b"round %d\n" % number
