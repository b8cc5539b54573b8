"""Where a payload's bytes come from: buffers in memory laid end to end, or local files.

Nothing here holds a whole file in memory. A source hands out its bytes piece by piece; a piece is the caller's own
memory wherever it is large and contiguous, else it is gathered in a scratch buffer of the thread that asks.
"""

from __future__ import annotations

import bisect
import errno
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from holdfast.errors import HoldfastError, UnavailableError, UsageError


class Pieces(Protocol):
    """An open source; safe from several threads at once, each with a scratch buffer of its own."""

    def pieces(self, start: int, stop: int, scratch: memoryview) -> Iterator[memoryview]:
        """The bytes from `start` to `stop`, in order; each piece is valid until the next one is asked for."""


class Source(Protocol):
    """One payload file's bytes."""

    @property
    def size(self) -> int:
        """Length in bytes, known before it is opened."""

    def open(self) -> AbstractContextManager[Pieces]:
        """Raises UsageError when the bytes are not (or, at the end, were not) what `size` promised."""


class Gathered(Protocol):
    """A run of bytes that has to be put together: a strided tensor, or one on another device."""

    @property
    def nbytes(self) -> int: ...

    def fill(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on."""


Segment = bytes | memoryview | Gathered


class BytesSource:
    """Segments laid end to end: a header, then one segment per tensor. Nothing is copied; the memory is borrowed.

    The caller leaves the memory unchanged until the bytes are written. If it doesn't, the version that was
    written is refused by every consumer.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = [_flat(segment) for segment in segments if _nbytes(segment)]
        self._starts: list[int] = []
        self._size = 0
        for segment in self._segments:
            self._starts.append(self._size)
            self._size += _nbytes(segment)

    @property
    def size(self) -> int:
        return self._size

    @contextmanager
    def open(self) -> Iterator[Pieces]:
        yield self

    def pieces(self, start: int, stop: int, scratch: memoryview) -> Iterator[memoryview]:
        """As `Pieces.pieces`. All pieces but the last are as long as `scratch`."""
        at, used = start, 0
        while at < stop:
            index = bisect.bisect_right(self._starts, at) - 1
            segment, inner = self._segments[index], at - self._starts[index]
            available = min(_nbytes(segment) - inner, stop - at)
            if used == 0 and available >= len(scratch) and isinstance(segment, memoryview):
                yield segment[inner : inner + len(scratch)]
                at += len(scratch)
                continue
            taken = min(available, len(scratch) - used)
            if isinstance(segment, memoryview):
                scratch[used : used + taken] = segment[inner : inner + taken]
            else:
                segment.fill(inner, scratch[used : used + taken])
            at, used = at + taken, used + taken
            if used == len(scratch) or at == stop:
                yield scratch[:used]
                used = 0


class FileSource:
    """A local file that is copied as it is. `size` is the length that it had when the payload was put together."""

    def __init__(self, path: str | os.PathLike[str], size: int) -> None:
        self.path = pathlib.Path(path)
        self._size = size

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> FileSource:
        """The file at `path` as it is now. UsageError: there is none, or it is a symlink, directory or device."""
        try:
            status = os.lstat(path)
        except OSError as error:
            raise local_error(path, error) from error
        if not stat.S_ISREG(status.st_mode):
            raise _not_a_file(path)
        return cls(path, status.st_size)

    @property
    def size(self) -> int:
        return self._size

    @contextmanager
    def open(self) -> Iterator[LocalFile]:
        """Raises UsageError code "source_changed" if the file was written to while it was read: publish it again."""
        try:
            # O_NONBLOCK: a pipe put in the file's place must not stop us before fstat sees it.
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise local_error(self.path, error) from error
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise _not_a_file(self.path)
            if before.st_size != self._size:
                raise _changed(self.path, f"it had {self._size} bytes, now {before.st_size}")
            yield LocalFile(self.path, fd, self._size)
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise _changed(self.path, f"it had {before.st_size} bytes, now {after.st_size}")
        finally:
            os.close(fd)


class LocalFile:
    """An open local file: pieces of it, and the reading side of the storage contract's Reader."""

    def __init__(self, path: pathlib.Path, fd: int, size: int) -> None:
        self._path = path
        self._fd = fd
        self.size = size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        done = 0
        try:
            while done < len(buffer) and (count := os.preadv(self._fd, [buffer[done:]], offset + done)):
                done += count
        except OSError as error:
            raise local_error(self._path, error) from error
        return done

    def pieces(self, start: int, stop: int, scratch: memoryview) -> Iterator[memoryview]:
        for at in range(start, stop, len(scratch)):
            piece = scratch[: min(len(scratch), stop - at)]
            count = self.read_into(at, piece)
            if count < len(piece):
                raise _changed(self._path, f"it had {self.size} bytes, now {at + count}")
            yield piece

    def close(self) -> None:
        """Nothing to do: whoever opened the source closes it."""


def local_error(path: str | os.PathLike[str], error: OSError) -> HoldfastError:
    """What `error` about a file of the caller's means to the caller."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return UsageError(f"there is no file {os.fspath(path)}", code="missing_file", path=os.fspath(path))
    if error.errno == errno.ELOOP:
        return _not_a_file(path)
    name = errno.errorcode.get(error.errno or 0, "unknown").lower()
    return UnavailableError(f"{os.fspath(path)}: {error.strerror}", code=f"errno_{name}", path=os.fspath(path))


def _not_a_file(path: str | os.PathLike[str]) -> UsageError:
    return UsageError(
        f"{os.fspath(path)} is not a regular file",
        code="not_a_file",
        hint="publish regular files only; `cp -rL` makes a copy in which symlinks are followed",
        path=os.fspath(path),
    )


def _changed(path: pathlib.Path, how: str) -> UsageError:
    return UsageError(
        f"{path} changed while it was published: {how}",
        code="source_changed",
        hint="nothing became visible; publish it again when nobody writes to it",
        path=str(path),
    )


def _nbytes(segment: Segment) -> int:
    return len(segment) if isinstance(segment, bytes) else segment.nbytes


def _flat(segment: Segment) -> memoryview | Gathered:
    if isinstance(segment, (bytes, memoryview)):
        return memoryview(segment).cast("B").toreadonly()
    return segment
