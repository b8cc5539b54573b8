"""Payload files of the POSIX storage: read, and written into a staged tree."""

from __future__ import annotations

import threading
from contextlib import suppress

from holdfast.channel.ops import Ops
from holdfast.channel.rooted import DIRECTORY_MODE, FILE_MODE, Root, os_errors, storage_error, write_all
from holdfast.core.names import check_path
from holdfast.errors import HoldfastError, UsageError

STAGING = "staging"


class PosixReader:
    """An open payload file. `size` is what the file said when it was opened."""

    def __init__(self, root: Root, handle: int, size: int, path: str) -> None:
        self._root = root
        self._handle = handle
        self._path = path
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> int:
        filled = 0
        with os_errors(self._path):
            while filled < len(buffer):
                count = self._root.ops.pread(self._handle, buffer[filled:], offset + filled)
                if count == 0:
                    break
                filled += count
        return filled

    def close(self) -> None:
        handle, self._handle = self._handle, -1
        self._root.close_read(handle)


class PosixWriter:
    """A new payload file in a staged tree. After any error it stays failed: `close` raises, whatever came between."""

    def __init__(self, ops: Ops, handle: int, path: str) -> None:
        self._ops = ops
        self._handle = handle
        self._path = path
        self._failure: HoldfastError | None = None

    def write_at(self, offset: int, data: memoryview) -> None:
        try:
            write_all(self._ops, self._handle, data, offset)
        except OSError as error:
            self._failure = storage_error(error, self._path)
            raise self._failure from error

    def close(self) -> None:
        handle, self._handle = self._handle, -1
        try:
            if handle >= 0 and self._failure is None:
                self._ops.fsync(handle)
        except OSError as error:
            self._failure = storage_error(error, self._path)
        self._release(handle)
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        handle, self._handle = self._handle, -1
        self._failure = self._failure or UsageError(f"{self._path} was given up", code="writer_aborted")
        self._release(handle)

    def _release(self, handle: int) -> None:
        try:
            if handle >= 0:
                self._ops.close(handle)
        except OSError as error:  # NFS tells of failed writes here
            self._failure = self._failure or storage_error(error, self._path)


class PosixTreeWriter:
    """A staged tree. Several files may be written at once, from several threads."""

    def __init__(self, root: Root, nonce: str) -> None:
        self._root = root
        self._nonce = nonce
        self._making = threading.Lock()

    def file(self, path: str) -> PosixWriter:
        above, _, name = check_path(path).rpartition("/")
        ops = self._root.ops
        staged = f"{STAGING}/{self._nonce}"
        with os_errors(path):
            if above:
                self._make_directories(staged, above.split("/"))
            with self._root.directory(f"{staged}/{above}" if above else staged) as at:
                handle = ops.create(at, name, FILE_MODE)
            try:
                ops.chmod(handle, FILE_MODE)
            except OSError:
                ops.close(handle)
                raise
        return PosixWriter(ops, handle, path)

    def _make_directories(self, staged: str, parts: list[str]) -> None:
        with self._making:
            for i, name in enumerate(parts):
                with self._root.directory("/".join([staged, *parts[:i]])) as at, suppress(FileExistsError):
                    self._root.make_directory(at, name, DIRECTORY_MODE)

    def abort(self) -> None:
        with os_errors(self._nonce), suppress(FileNotFoundError), self._root.directory(STAGING) as at:
            self._root.remove_tree(at, self._nonce)
