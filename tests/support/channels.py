"""Channels for tests: on a directory and on the object store, small payloads, and processes that can be cut off."""

from __future__ import annotations

import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from holdfast import Channel, HeldVersion, UnavailableError
from holdfast.channel.memory import MemoryStorage, MemoryStore
from holdfast.channel.payload import Payload
from holdfast.channel.posix import PosixStorage
from holdfast.channel.sources import BytesSource
from holdfast.channel.storage import Storage

# Far longer than anything that is waited for takes: what it bounds has failed. In a mutant that is what is wanted.
WAIT_S = 6.0 if "HOLDFAST_MUTANT" in os.environ else 20.0
WEIGHTS = "w.bin"


def payload(*contents: str | bytes, kind: str = "test") -> Payload:
    """A payload of small files: w.bin, then w1.bin and so on."""
    data = [content.encode() if isinstance(content, str) else content for content in contents]
    names = [WEIGHTS, *(f"w{i}.bin" for i in range(1, len(data)))]
    return Payload(files=tuple((name, BytesSource([part])) for name, part in zip(names, data, strict=True)), kind=kind)


@dataclass
class Place:
    """Where one channel lies. `channel()` opens it as another process would, with objects of its own."""

    kind: str
    path: pathlib.Path
    memory: MemoryStore = field(default_factory=MemoryStore)

    def storage(self) -> Storage:
        return PosixStorage(self.path) if self.kind == "posix" else MemoryStorage(self.memory)

    def channel(self, **options: Any) -> Channel:
        place = self.path if self.kind == "posix" else self.storage()
        return Channel(place, **options)

    def read(self, held: HeldVersion, name: str = WEIGHTS) -> str:
        """What the user of a version that is held in place reads in it."""
        return read_file(self.storage(), f"versions/{held.name}/{name}")


def read_file(storage: Storage, path: str) -> str:
    reader = storage.open(path)
    try:
        buffer = bytearray(reader.size)
        assert reader.read_into(0, memoryview(buffer)) == reader.size
    finally:
        reader.close()
    return buffer.decode()


class CutOff:
    """A storage as one process sees it, whose connection can be cut: from then on every call fails.

    Stands for a process that died or froze: its threads may go on, and reach nothing.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._calls_left: int | None = None
        self._lock = threading.Lock()

    def cut(self, *, after_calls: int = 0) -> None:
        """Let `after_calls` more calls through, then none."""
        with self._lock:
            self._calls_left = after_calls

    def mend(self) -> None:
        with self._lock:
            self._calls_left = None

    @property
    def is_cut(self) -> bool:
        with self._lock:
            return self._calls_left == 0

    def _pass(self) -> None:
        with self._lock:
            if self._calls_left is None:
                return
            if self._calls_left == 0:
                raise UnavailableError("cut off", code="errno_eio", path="")
            self._calls_left -= 1

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if not callable(found) or name == "local_path":
            return found

        def call(*args: Any, **options: Any) -> Any:
            self._pass()
            answer = found(*args, **options)
            return _CutOffTree(answer, self) if name == "begin_tree" else answer

        return call

    def checked(self, call: Callable[[], Any]) -> Any:
        self._pass()
        return call()


class _CutOffTree:
    """A tree that is being written over a connection that can be cut."""

    def __init__(self, tree: Any, link: CutOff) -> None:
        self._tree = tree
        self._link = link

    def file(self, path: str) -> Any:
        return self._link.checked(lambda: self._tree.file(path))

    def abort(self) -> None:
        self._link.checked(self._tree.abort)


class Stop:
    """One call that is held up: `reached` once it is made, and it goes on when `go` is set."""

    def __init__(self, method: str, prefix: str) -> None:
        self.method = method
        self.prefix = prefix
        self.reached = threading.Event()
        self.go = threading.Event()


class Gated:
    """A storage on which the next call of a kind can be held up, as if the process was stopped there."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._stops: list[Stop] = []
        self._lock = threading.Lock()

    def stop_at(self, method: str, prefix: str) -> Stop:
        """Hold up the next call of `method` on a path that begins with `prefix`."""
        stop = Stop(method, prefix)
        with self._lock:
            self._stops.append(stop)
        return stop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                stop = next((s for s in self._stops if s.method == name and str(args[0]).startswith(s.prefix)), None)
                if stop is not None:
                    self._stops.remove(stop)
            if stop is not None:
                stop.reached.set()
                assert stop.go.wait(WAIT_S), f"{name} was never let go on"
            return found(*args, **options)

        return call


@contextmanager
def quick_directory(fallback: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new directory in memory, gone at the end; `fallback` on machines without such a file system."""
    memory = pathlib.Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield fallback
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="holdfast-test-") as name:
        yield pathlib.Path(name)


@contextmanager
def thread(work: Callable[[], Any]) -> Iterator[Background]:
    """`work` in a thread of its own while the block runs; its error is raised at the end."""
    background = Background(work)
    background.start()
    try:
        yield background
    finally:
        background.join(WAIT_S)
        assert not background.is_alive(), "the thread goes on"
    background.result()


class Background(threading.Thread):
    """A thread that keeps what it returned or raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
            self._error = error

    def result(self) -> Any:
        self.join(WAIT_S)
        assert not self.is_alive(), "the thread goes on"
        if self._error is not None:
            raise self._error
        return self._value


def until(condition: Callable[[], Any], what: str = "it never came true", *, timeout_s: float = WAIT_S) -> Any:
    """Wait for `condition` to be true, looking often; its value."""
    tick = threading.Event()
    for _ in range(round(timeout_s / 0.01)):
        found = condition()
        if found:
            return found
        tick.wait(0.01)
    raise AssertionError(what)
