"""Below one directory and nowhere else: walking, small files, directory syncs and removal over `Ops`.

Every component below the root is opened by itself and refused if it is a symlink, so that nothing planted there
leads out of it; the root's own path is the user's and is followed. Nothing is kept open between calls: on a
network file system each open of a directory is what makes its newest entries visible.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from holdfast.channel.ops import Ops
from holdfast.channel.storage import Entry
from holdfast.errors import ConflictError, HoldfastError, IntegrityError, NotVisibleError, UnavailableError

log = logging.getLogger(__name__)

TEMPORARY = ".tmp-"
FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
_NOT_VISIBLE = frozenset({errno.ENOENT, errno.ESTALE, errno.ENOTDIR})
_NOT_A_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV})
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})
_GONE_OR_IN_USE = frozenset({errno.ENOENT, errno.EBUSY})  # EBUSY: an .nfs* file of this very client
_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_HINTS = {
    errno.ENOSPC: "free space on the file system, or lower the retention",
    errno.EDQUOT: "free space within the quota, or lower the retention",
    errno.EROFS: "the mount is read-only; open the channel for reading only, or give `claims=` another place",
    errno.EACCES: "check the owner and mode of the directory; `holdfast doctor PATH` tests them",
    errno.EPERM: "check the owner and mode of the directory; `holdfast doctor PATH` tests them",
}


def storage_error(error: OSError, path: str) -> HoldfastError:
    """What `error` at `path` means to a caller of the storage contract: the only place where errnos are judged."""
    number = error.errno or 0
    code = f"errno_{errno.errorcode.get(number, str(number)).lower()}"
    message = f"{path or 'the root'}: {error.strerror or error}"
    if number in _NOT_VISIBLE:
        return NotVisibleError(message, code=code, path=path)
    if number in _NOT_A_FILE:
        return IntegrityError(f"{message}: not a regular file", code="not_a_file", path=path)
    if number == errno.EEXIST:
        return ConflictError(message, code="exists", path=path)
    return UnavailableError(message, code=code, hint=_HINTS.get(number, ""), path=path)


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """OSErrors inside become the contract's errors about `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


class Root:
    """One directory, reached by its path at each call. Raises OSError, and IntegrityError for what was planted."""

    def __init__(self, path: str, ops: Ops) -> None:
        self.path = path
        self.ops = ops
        self.directory_sync: bool | None = None
        self._seen = "/"  # the last directory on the way down to the root that was there

    def appeared(self) -> bool:
        """Whether the root may be asked for by its name: it is there, or may come on a local file system.

        An NFS client that asks for a name too early keeps "missing" for 30 s and more, on NFS 3 sometimes for good. So
        there a name is asked for only once a listing shows it, from the last directory that was there downwards.
        """
        while self._seen != self.path:
            name = self.path[len(self._seen) :].strip("/").partition("/")[0]
            if self.ops.file_system(self._seen).startswith("nfs") and not self._lists(self._seen, name):
                return False
            below = f"{self._seen.rstrip('/')}/{name}"
            try:
                self.ops.close(self.ops.open_directory(None, below, follow=True))
            except (FileNotFoundError, NotADirectoryError):
                return False
            except PermissionError:
                pass  # may be passed through all the same
            self._seen = below
        return True

    def _lists(self, directory: str, name: str) -> bool:
        """Whether a listing of `directory` shows `name`; True where it may not be listed."""
        try:
            return any(entry.name == name for entry in self.ops.scandir(None, directory, follow=True))
        except PermissionError:
            return True

    def scan(self) -> list[Entry]:
        """A listing of the root itself. FileNotFoundError: not there yet."""
        if not self.appeared():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        try:
            return self.ops.scandir(None, self.path, follow=True)
        except FileNotFoundError:
            self._seen = "/"  # it has gone, and may come again
            raise

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A handle of directory `path` ("" is the root) while the block runs."""
        handle = self._open_first("") if not path else -1
        try:
            for i, name in enumerate(path.split("/") if path else ()):
                below = self._open_first(name) if i == 0 else self._open_below(handle, name, path)
                self.close_read(handle)
                handle = below
            yield handle
        finally:
            self.close_read(handle)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int | None, str]]:
        """`at` and name of `path` for reading calls; one open fewer than `directory` for what is in the root."""
        above, _, name = path.rpartition("/")
        if not above:
            yield None, f"{self.path}/{name}"
            return
        with self.directory(above) as at:
            yield at, name

    def _open_first(self, name: str) -> int:
        if not name:
            return self.ops.open_directory(None, self.path, follow=True)
        return self._open_below(None, f"{self.path}/{name}", name)

    def _open_below(self, at: int | None, name: str, path: str) -> int:
        try:
            return self.ops.open_directory(at, name)
        except NotADirectoryError:
            self.refuse_link(at, name, path)
            raise

    def refuse_link(self, at: int | None, name: str, path: str) -> None:
        """After ENOTDIR: IntegrityError if a symlink was planted there."""
        if self.ops.lstat(at, name).kind == "link":
            raise IntegrityError(
                f"{path}: {name.rpartition('/')[2]!r} is a symlink where a directory belongs",
                code="not_a_directory",
                hint="somebody put it there; look where it leads, then remove it",
                path=path,
            ) from None

    def close_read(self, handle: int) -> None:
        """Close what was only read: an error here says nothing that matters."""
        if handle >= 0:
            with suppress(OSError):
                self.ops.close(handle)

    def sync_directory(self, handle: int) -> None:
        """Durability: the entries survive a power cut, unless the file system can't sync directories (remembered)."""
        try:
            self.ops.fsync_directory(handle)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise
            if self.directory_sync is not False:
                log.warning("%s: this file system cannot sync a directory (%s)", self.path, error.strerror)
            self.directory_sync = False
        else:
            if self.directory_sync is None:
                self.directory_sync = True

    def read_file(self, at: int | None, name: str, limit_bytes: int, path: str) -> bytes:
        """The whole of a small regular file. IntegrityError "not_a_file" or "too_large"."""
        handle, size = self.open_file(at, name, path)
        try:
            buffer = memoryview(bytearray(min(size, limit_bytes) + 1))
            filled = 0
            while size <= limit_bytes and filled < len(buffer):
                count = self.ops.pread(handle, buffer[filled:], filled)
                filled += count
                if count == 0 or filled == size:
                    return bytes(buffer[:filled])
            raise IntegrityError(
                f"{path}: {max(size, filled)} bytes, the limit is {limit_bytes}",
                code="too_large",
                path=path,
            )
        finally:
            self.close_read(handle)

    def open_file(self, at: int | None, name: str, path: str) -> tuple[int, int]:
        """Handle and size of a regular file; IntegrityError "not_a_file" for whatever else stands there."""
        try:
            handle = self.ops.open_read(at, name)
        except OSError as error:
            if error.errno in _NOT_A_FILE:
                raise not_a_file(path, str(error.strerror)) from error
            raise
        try:
            status = self.ops.status(handle)
            if status.kind != "file":
                raise not_a_file(path, status.kind)
        except (OSError, IntegrityError):
            self.close_read(handle)
            raise
        return handle, status.size

    def write_file(self, at: int, name: str, data: bytes, *, sync: bool = True) -> None:
        """A new file with `data`. Durability (with `sync`): its bytes, not its name. After an error it may be left."""
        handle = self.ops.create(at, name, FILE_MODE)
        try:
            self.ops.chmod(handle, FILE_MODE)
            write_all(self.ops, handle, memoryview(data), 0)
            if sync:
                self.ops.fsync(handle)
        finally:
            self.ops.close(handle)

    def write_temporary(self, at: int, data: bytes, *, sync: bool = True) -> str:
        """A new file under a name that readers ignore; the name. Durability (with `sync`): its bytes."""
        name = new_temporary()
        try:
            self.write_file(at, name, data, sync=sync)
        except OSError:
            self.discard(at, name)
            raise
        return name

    def discard(self, at: int, name: str) -> None:
        """Remove a temporary if that can be done; what stays is found by the sweep."""
        with suppress(OSError):
            self.ops.unlink(at, name)

    def make_directory(self, at: int, name: str, mode: int, *, sync: bool = False) -> None:
        """A new directory with exactly `mode`, durable with `sync`. FileExistsError if anything stands there."""
        self.ops.mkdir(at, name, mode)
        handle = self.ops.open_directory(at, name)
        try:
            self.ops.chmod(handle, mode)
            if sync:
                self.sync_directory(handle)
        finally:
            self.close_read(handle)

    def remove_tree(self, at: int, name: str) -> None:
        """Remove `name` and all below it; absent is success, symlinks are removed and never followed.

        Directories inside are moved up before they are emptied, so that no depth exhausts the stack or the handles.
        What the file system won't let go yet (`.nfs*` of a file that somebody has open) stays for the next time, and
        somebody else may be removing the same tree.
        """
        with suppress(FileNotFoundError):
            if self.ops.lstat(at, name).kind != "directory":
                self.ops.unlink(at, name)
                return
            top = self.ops.open_directory(at, name)
            try:
                while inner := self._remove_files(at, name, top):
                    gone = [self._remove_inner(top, one) for one in inner]
                    if not all(gone):
                        break
            finally:
                self.close_read(top)
            self._remove_empty(at, name)

    def _remove_inner(self, top: int, name: str) -> bool:
        """Empty and remove one directory of `top`, moving its own directories to `top`; whether it is gone."""
        try:
            handle = self.ops.open_directory(top, name)
        except FileNotFoundError:
            return True
        try:
            for inner in self._remove_files(top, name, handle):
                with suppress(FileNotFoundError):
                    self.ops.rename(handle, inner, top, new_temporary())
        finally:
            self.close_read(handle)
        return self._remove_empty(top, name)

    def _remove_files(self, at: int, name: str, handle: int) -> list[str]:
        """Unlink everything in a directory but its directories; the names of those."""
        entries = self.ops.scandir(at, name)
        for entry in entries:
            if entry.kind != "directory":
                try:
                    self.ops.unlink(handle, entry.name)
                except OSError as error:
                    if error.errno not in _GONE_OR_IN_USE:
                        raise
        return [entry.name for entry in entries if entry.kind == "directory"]

    def _remove_empty(self, at: int, name: str) -> bool:
        """Remove an empty directory; whether it is gone."""
        try:
            self.ops.rmdir(at, name)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                raise
            return False
        return True


def new_temporary() -> str:
    """A name that readers ignore, used by nobody else."""
    return TEMPORARY + secrets.token_hex(8)


def not_a_file(path: str, kind: str) -> IntegrityError:
    return IntegrityError(
        f"{path}: not a regular file ({kind})",
        code="not_a_file",
        hint="nothing that Holdfast writes; remove it if nobody needs it",
        path=path,
    )


def write_all(ops: Ops, handle: int, data: memoryview, offset: int) -> None:
    """All of `data` at `offset`; the system may take it in several parts."""
    view = data.cast("B") if data.format != "B" or data.ndim != 1 else data
    done = 0
    while done < len(view):
        count = ops.pwrite(handle, view[done:], offset + done)
        if count == 0:
            raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
        done += count
