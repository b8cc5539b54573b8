"""Calls of the operating system that fail when told to.

ops = FaultyOps(RealOps())
ops.fail("fsync", errno.ENOSPC, path="*/staging/*")          # the first such call
ops.fail("rename", errno.EIO, answer_lost=True)              # it happens, and says that it failed
ops.fail("pwrite", errno.EIO, on_call=3, times=None)         # from the third call on, for good
ops.skip("fsync_directory", path="*/versions")               # a disk that lies: it says yes and does nothing
storage = PosixStorage(path, ops=ops)
"""

from __future__ import annotations

import errno
import fnmatch
import inspect
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from holdfast.channel.ops import Ops, Status
from holdfast.channel.storage import Entry, Watch
from holdfast.errors import UsageError

T = TypeVar("T")

OPERATIONS = frozenset(name for name, _ in inspect.getmembers(Ops, inspect.isfunction) if not name.startswith("_"))
_WITHOUT_ANSWER = frozenset(
    {"fsync", "fsync_directory", "chmod", "mkdir", "rmdir", "unlink", "rename", "link", "symlink"}
)


@dataclass
class _Rule:
    operation: str
    path: str
    number: int  # errno; 0: says yes and does nothing
    on_call: int
    times: int | None
    answer_lost: bool
    num_matches: int = 0

    def strikes(self, operation: str, paths: tuple[str, ...]) -> bool:
        """Whether this call is one to fail. Counts the calls that match."""
        if operation != self.operation or not any(fnmatch.fnmatchcase(path, self.path) for path in paths):
            return False
        self.num_matches += 1
        since = self.num_matches - self.on_call
        return since >= 0 and (self.times is None or since < self.times)


class FaultyOps:
    """`ops` with faults. Implements `Ops`; safe from several threads.

    Args:
        ops: what carries out the calls.
        max_bytes_per_call: reads and writes move no more than this at once (None: as many as `ops` likes).

    Attributes:
        calls: how often each operation was called.
    """

    def __init__(self, ops: Ops, *, max_bytes_per_call: int | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self._ops = ops
        self._max_bytes = max_bytes_per_call
        self._rules: list[_Rule] = []
        self._paths: dict[int, str] = {}
        self._lock = threading.Lock()

    def fail(
        self,
        operation: str,
        number: int = errno.EIO,
        *,
        path: str = "*",
        on_call: int = 1,
        times: int | None = 1,
        answer_lost: bool = False,
    ) -> None:
        """Fail calls of `operation`, a method's name of `Ops`, with errno `number`.

        Args:
            path: a pattern as in `fnmatch` for the full path ("/" is matched by "*"); of rename and link either one.
            on_call: the first call to fail, counting those that match from 1, from now on.
            times: how many calls fail from there on; None: all.
            answer_lost: the operation is carried out, then reported as failed.
        """
        self._add(_Rule(operation, path, number, on_call, times, answer_lost))

    def skip(self, operation: str, *, path: str = "*", on_call: int = 1, times: int | None = None) -> None:
        """Report success of `operation` without doing it. For operations that give no answer but success."""
        if operation not in _WITHOUT_ANSWER:
            raise UsageError(f"{operation!r} cannot be skipped: its caller needs the answer", code="bad_operation")
        self._add(_Rule(operation, path, 0, on_call, times, answer_lost=False))

    def clear(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._rules.clear()

    def _add(self, rule: _Rule) -> None:
        if rule.operation not in OPERATIONS:
            raise UsageError(f"there is no operation {rule.operation!r}", code="bad_operation")
        with self._lock:
            self._rules.append(rule)

    def _call(self, operation: str, paths: tuple[str, ...], carry_out: Callable[[], T]) -> T:
        with self._lock:
            self.calls[operation] += 1
            struck = [rule for rule in self._rules if rule.strikes(operation, paths)]
        if not struck:
            return carry_out()
        rule = struck[0]
        if rule.answer_lost:
            carry_out()
        if rule.number:
            raise OSError(rule.number, os.strerror(rule.number), paths[0])
        return None  # type: ignore[return-value]  # only operations without an answer are skipped

    def _path(self, at: int | None, name: str) -> str:
        return name if at is None else f"{self._paths.get(at, '?')}/{name}"

    def _opened(self, handle: int, path: str) -> int:
        self._paths[handle] = path
        return handle

    def _open(self, operation: str, path: str, carry_out: Callable[[], int]) -> int:
        return self._opened(self._call(operation, (path,), carry_out), path)

    def _at_handle(self, operation: str, handle: int, carry_out: Callable[[], T]) -> T:
        return self._call(operation, (self._paths.get(handle, "?"),), carry_out)

    # Ops

    def scandir(self, at: int | None, name: str, *, follow: bool = False) -> list[Entry]:
        return self._call("scandir", (self._path(at, name),), lambda: self._ops.scandir(at, name, follow=follow))

    def open_directory(self, at: int | None, name: str, *, follow: bool = False) -> int:
        path = self._path(at, name)
        return self._open("open_directory", path, lambda: self._ops.open_directory(at, name, follow=follow))

    def open_read(self, at: int | None, name: str) -> int:
        return self._open("open_read", self._path(at, name), lambda: self._ops.open_read(at, name))

    def create(self, at: int | None, name: str, mode: int) -> int:
        return self._open("create", self._path(at, name), lambda: self._ops.create(at, name, mode))

    def status(self, handle: int) -> Status:
        return self._at_handle("status", handle, lambda: self._ops.status(handle))

    def lstat(self, at: int | None, name: str) -> Status:
        return self._call("lstat", (self._path(at, name),), lambda: self._ops.lstat(at, name))

    def pread(self, handle: int, buffer: memoryview, offset: int) -> int:
        part = buffer[: self._max_bytes]
        return self._at_handle("pread", handle, lambda: self._ops.pread(handle, part, offset))

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        part = data[: self._max_bytes]
        return self._at_handle("pwrite", handle, lambda: self._ops.pwrite(handle, part, offset))

    def fsync(self, handle: int) -> None:
        self._at_handle("fsync", handle, lambda: self._ops.fsync(handle))

    def fsync_directory(self, handle: int) -> None:
        self._at_handle("fsync_directory", handle, lambda: self._ops.fsync_directory(handle))

    def chmod(self, handle: int, mode: int) -> None:
        self._at_handle("chmod", handle, lambda: self._ops.chmod(handle, mode))

    def close(self, handle: int) -> None:
        try:
            self._at_handle("close", handle, lambda: self._ops.close(handle))
        finally:
            self._paths.pop(handle, None)

    def mkdir(self, at: int | None, name: str, mode: int) -> None:
        self._call("mkdir", (self._path(at, name),), lambda: self._ops.mkdir(at, name, mode))

    def rmdir(self, at: int | None, name: str) -> None:
        self._call("rmdir", (self._path(at, name),), lambda: self._ops.rmdir(at, name))

    def unlink(self, at: int | None, name: str) -> None:
        self._call("unlink", (self._path(at, name),), lambda: self._ops.unlink(at, name))

    def rename(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
        paths = (self._path(at, name), self._path(to, to_name))
        self._call("rename", paths, lambda: self._ops.rename(at, name, to, to_name))

    def link(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
        paths = (self._path(at, name), self._path(to, to_name))
        self._call("link", paths, lambda: self._ops.link(at, name, to, to_name))

    def symlink(self, target: str, at: int | None, name: str) -> None:
        self._call("symlink", (self._path(at, name),), lambda: self._ops.symlink(target, at, name))

    def readlink(self, at: int | None, name: str) -> str:
        return self._call("readlink", (self._path(at, name),), lambda: self._ops.readlink(at, name))

    def free_bytes(self, handle: int) -> int:
        return self._at_handle("free_bytes", handle, lambda: self._ops.free_bytes(handle))

    def host(self) -> str:
        return self._ops.host()

    def watch(self, path: str) -> Watch | None:
        return self._ops.watch(path)

    def file_system(self, path: str) -> str:
        return self._ops.file_system(path)
