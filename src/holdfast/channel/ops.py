"""Operating-system calls of the POSIX storage, one method each: the only place where it touches a file system.

The seam is there so that something else can stand in for the operating system: a simulated disk that loses power,
or a wrapper that fails the k-th call (`holdfast.testing`). Nothing is decided here, and every method raises OSError
as the system gave it.

Names are relative to `at`, the handle of an open directory; with `at=None` the name is a full path whose leading
part is trusted. The last component is never followed if it is a symlink, unless `follow` says so. A walk that
opens one component after the other can therefore not be led out of its root.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol

from holdfast.channel.storage import Entry

if TYPE_CHECKING:
    from holdfast.channel.storage import Watch

_LISTING_BYTES = 64 * 1024
_WRITEBACK_BYTES = 2**20
_START_WRITEBACK = 2  # SYNC_FILE_RANGE_WRITE
_DIRENT_NAME = 19  # linux_dirent64: u64 inode, s64 offset, u16 length, u8 type, name
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
_DIRENT_KINDS = {8: "file", 4: "directory", 10: "link"}
_DIRENT_UNKNOWN = 0


class Status(NamedTuple):
    """What one inode says of itself. `kind` as in `Entry`, `mode` without the type bits."""

    kind: str
    size: int
    mode: int
    device: int
    links: int


class Ops(Protocol):
    """See the module's docstring. Handles are small integers that belong to this object."""

    def scandir(self, at: int | None, name: str, *, follow: bool = False) -> list[Entry]:
        """The directory's entries, in no order, by a fresh open of it; '.' and '..' left out."""

    def open_directory(self, at: int | None, name: str, *, follow: bool = False) -> int:
        """A handle for `at`. ENOTDIR for a symlink as for every other thing that is no directory."""

    def open_read(self, at: int | None, name: str) -> int:
        """A handle for `pread`; never blocks (a FIFO opens at once). ELOOP for a symlink. Check its kind."""

    def create(self, at: int | None, name: str, mode: int) -> int:
        """A new empty file and a handle for `pwrite`. EEXIST if anything stands there, a symlink included."""

    def status(self, handle: int) -> Status: ...

    def lstat(self, at: int | None, name: str) -> Status: ...

    def pread(self, handle: int, buffer: memoryview, offset: int) -> int:
        """Read into `buffer`; the number of bytes, 0 at the end of the file."""

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        """Write at `offset`; the number of bytes written, possibly fewer than given."""

    def fsync(self, handle: int) -> None:
        """Durability: the file's bytes and mode survive a power cut."""

    def fsync_directory(self, handle: int) -> None:
        """Durability: the directory's entries survive a power cut. EINVAL, ENOTSUP where it can't be done."""

    def chmod(self, handle: int, mode: int) -> None: ...

    def close(self, handle: int) -> None: ...

    def mkdir(self, at: int | None, name: str, mode: int) -> None: ...

    def rmdir(self, at: int | None, name: str) -> None: ...

    def unlink(self, at: int | None, name: str) -> None: ...

    def rename(self, at: int | None, name: str, to: int | None, to_name: str) -> None: ...

    def link(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
        """A second name for a file. EEXIST if anything stands there."""

    def symlink(self, target: str, at: int | None, name: str) -> None: ...

    def readlink(self, at: int | None, name: str) -> str: ...

    def free_bytes(self, handle: int) -> int:
        """Space that this user can still write on the directory's file system."""

    def host(self) -> str:
        """An id of the running kernel: equal only where one page cache is shared."""

    def watch(self, path: str) -> Watch | None:
        """Local change notification for a channel's root, or None where there is none."""

    def file_system(self, path: str) -> str:
        """The type of the file system at `path` as the kernel names it ("ext4", "nfs4"); "" where it can't be told."""


class RealOps:
    """The operating system. Calls that move data or wait for a disk release the GIL."""

    def scandir(self, at: int | None, name: str, *, follow: bool = False) -> list[Entry]:
        handle = self.open_directory(at, name, follow=follow)
        try:
            return [
                Entry(name, known)
                for name, kind in _read_entries(handle)
                if (known := kind or self._kind(handle, name)) is not None
            ]
        finally:
            os.close(handle)

    def _kind(self, at: int, name: str) -> str | None:
        """The kind of a listed name where the listing didn't say, or None: it is gone by now."""
        try:
            return self.lstat(at, name).kind
        except FileNotFoundError:
            return None

    def open_directory(self, at: int | None, name: str, *, follow: bool = False) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        return os.open(name, flags, dir_fd=at)

    def open_read(self, at: int | None, name: str) -> int:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=at)

    def create(self, at: int | None, name: str, mode: int) -> int:
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)

    def status(self, handle: int) -> Status:
        return _status(os.fstat(handle))

    def lstat(self, at: int | None, name: str) -> Status:
        return _status(os.stat(name, dir_fd=at, follow_symlinks=False))

    def pread(self, handle: int, buffer: memoryview, offset: int) -> int:
        return os.preadv(handle, [buffer], offset)

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        written = os.pwrite(handle, data, offset)
        if written >= _WRITEBACK_BYTES and _sync_file_range is not None:
            # A hint: the disk begins now, instead of at the fsync that follows. Its failure tells nothing.
            _sync_file_range(handle, offset, written, _START_WRITEBACK)
        return written

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def fsync_directory(self, handle: int) -> None:
        os.fsync(handle)

    def chmod(self, handle: int, mode: int) -> None:
        os.fchmod(handle, mode)

    def close(self, handle: int) -> None:
        os.close(handle)

    def mkdir(self, at: int | None, name: str, mode: int) -> None:
        os.mkdir(name, mode, dir_fd=at)

    def rmdir(self, at: int | None, name: str) -> None:
        os.rmdir(name, dir_fd=at)

    def unlink(self, at: int | None, name: str) -> None:
        os.unlink(name, dir_fd=at)

    def rename(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
        os.rename(name, to_name, src_dir_fd=at, dst_dir_fd=to)

    def link(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
        os.link(name, to_name, src_dir_fd=at, dst_dir_fd=to, follow_symlinks=False)

    def symlink(self, target: str, at: int | None, name: str) -> None:
        os.symlink(target, name, dir_fd=at)

    def readlink(self, at: int | None, name: str) -> str:
        return os.readlink(name, dir_fd=at)

    def free_bytes(self, handle: int) -> int:
        figures = os.fstatvfs(handle)
        return figures.f_bavail * figures.f_frsize

    def host(self) -> str:
        boot = _read_id("/proc/sys/kernel/random/boot_id")
        if not boot:
            return _PROCESS_ID  # nothing tells two machines apart here, so nothing is taken to be shared
        return hashlib.sha256(_read_id("/etc/machine-id") + b"\n" + boot).hexdigest()[:32]

    def watch(self, path: str) -> Watch | None:
        from holdfast.channel.watch import open_watch  # inotify is needed by few

        return open_watch(path)

    def file_system(self, path: str) -> str:
        from holdfast.channel.watch import file_system

        return file_system(path)


_PROCESS_ID = secrets.token_hex(16)


def _read_id(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(256).strip()
    except OSError:
        return b""


def _status(found: os.stat_result) -> Status:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "other")
    return Status(kind, found.st_size, stat.S_IMODE(found.st_mode), found.st_dev, found.st_nlink)


def _read_entries(handle: int) -> list[tuple[str, str]]:
    """Names and kinds ("" where the file system doesn't say) from an open directory that was not read before.

    The system call itself, where the C library has it: `os.scandir` of a handle costs six calls more, and an idle
    consumer lives on a budget of ten a second.
    """
    if _getdents64 is None:
        with os.scandir(handle) as listing:
            return [(found.name, "") for found in listing]
    entries: list[tuple[str, str]] = []
    buffer = ctypes.create_string_buffer(_LISTING_BYTES)
    while (length := _getdents64(handle, buffer, _LISTING_BYTES)) > 0:
        entries.extend(_parse_entries(buffer.raw[:length]))
    if length < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return entries


def _parse_entries(data: bytes) -> list[tuple[str, str]]:
    entries = []
    offset = 0
    while offset < len(data):
        length = int.from_bytes(data[offset + 16 : offset + 18], sys.byteorder)
        assert length > _DIRENT_NAME, "the kernel's entries have a header"
        name = data[offset + _DIRENT_NAME : offset + length].split(b"\0", 1)[0]
        if name not in (b".", b".."):
            kind = data[offset + 18]
            text = "" if kind == _DIRENT_UNKNOWN else _DIRENT_KINDS.get(kind, "other")
            entries.append((os.fsdecode(name), text))
        offset += length
    return entries


def _find(name: str, result: type, *arguments: type) -> ctypes._NamedFuncPointer | None:
    """A function of the C library, or None where there is none."""
    try:
        function = ctypes.CDLL(None, use_errno=True)[name]
    except (OSError, AttributeError):
        return None
    function.argtypes = arguments
    function.restype = result
    return function


_getdents64 = _find("getdents64", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_sync_file_range = _find("sync_file_range", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
