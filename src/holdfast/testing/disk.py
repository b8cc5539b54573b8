"""A disk in memory that loses power, behind the same calls as the operating system's (`holdfast.channel.ops`).

    disk = SimulatedDisk(profile="ext4-like")
    storage = PosixStorage("/channel", ops=disk)
    disk.stop_after(7)                      # power fails when the eighth mutating operation is attempted
    with pytest.raises(PowerCut):
        publish(storage)
    for after in disk.crash_states(limit=200):
        recover(PosixStorage("/channel", ops=after))

To a running program it behaves as Linux does, errnos included (a test holds both against each other), except that
permissions are recorded and not enforced, as for root. What a power cut may leave behind is in `durability`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.channel.ops import Status
from holdfast.channel.storage import Entry, Watch
from holdfast.testing.durability import EXT4_LIKE, Durability, Image
from holdfast.testing.inodes import ROOT, Inode, Inodes, check_name, os_error

_DEVICE = 64_000
_UNLIMITED_BYTES = 2**62


class PowerCut(BaseException):
    """The power is gone: nothing that runs on this disk goes on. No `except Exception` must catch it."""


@dataclass(frozen=True)
class Operation:
    """One mutating operation that was carried out; `to` for rename and link."""

    name: str
    path: str
    to: str = ""


def _content(inode: Inode) -> bytes | str | None:
    if inode.kind == "directory":
        return None
    return inode.target if inode.kind == "link" else bytes(inode.data)


@dataclass(frozen=True)
class _Open:
    inode: Inode
    path: str
    writable: bool = False


class SimulatedDisk:
    """See the module's docstring. Implements `Ops`; safe from several threads.

    Args:
        profile: "ext4-like" or "weak-posix".
        capacity_bytes: what all files may hold together; beyond it writes fall short and fail with ENOSPC.
        host: the machine that the disk is in; two disks of one host name the same kernel.
        umask: taken off the modes of what is made, as a process's umask would be.
        kind: what the kernel calls the file system; "nfs4" is one that other machines may see too.

    Attributes:
        history: the mutating operations that were carried out, in order. Syncs are among them.
    """

    def __init__(
        self,
        *,
        profile: str = EXT4_LIKE,
        capacity_bytes: int | None = None,
        host: str = "simulated",
        umask: int = 0o022,
        kind: str = "ext4",
    ) -> None:
        self.profile = profile
        self.capacity_bytes = capacity_bytes
        self.history: list[Operation] = []
        self._host = host
        self._umask = umask
        self._kind = kind
        self._lock = threading.RLock()
        self._inodes = Inodes()
        self._open: dict[int, _Open] = {}
        self._next_handle = 3
        self._allowed: int | None = None
        self._is_off = False
        self._durability = Durability(profile, Image({ROOT: {}}, {}, {ROOT: 0o755}))

    # Power

    def stop_after(self, num_operations: int) -> None:
        """Let `num_operations` more mutating operations happen; the next one raises `PowerCut`, as does all after."""
        with self._lock:
            self._allowed = num_operations

    def cut_power(self) -> None:
        """From now on every call raises `PowerCut`."""
        with self._lock:
            self._is_off = True

    @property
    def is_off(self) -> bool:
        with self._lock:
            return self._is_off

    @property
    def num_open(self) -> int:
        """Handles that are open: what a program forgot to close, once it is done."""
        with self._lock:
            return len(self._open)

    def crash_states(self, limit: int = 1000) -> Iterator[SimulatedDisk]:
        """Disks as they may come back after a power cut now, no two alike, powered on and with nothing unsynced.

        All of them if there are at most `limit`; else a choice: what was done up to each moment, everything but one
        operation, one operation alone, then random subsets, the same ones in each run.
        """
        with self._lock:
            images = list(self._durability.states(limit))
        seen: set[tuple[object, ...]] = set()
        for image in images:
            disk = SimulatedDisk(
                profile=self.profile, capacity_bytes=self.capacity_bytes, host=self._host, umask=self._umask
            )
            disk._load(image, self._inodes)
            fingerprint = disk._fingerprint()
            if fingerprint not in seen:
                seen.add(fingerprint)
                yield disk
                if len(seen) >= limit:
                    return

    def tree(self) -> dict[str, bytes | str | None]:
        """Every path as it is visible now: a file's bytes, a symlink's target, None for a directory."""
        with self._lock:
            return {path: _content(inode) for path, inode in self._inodes.walk()}

    def _fingerprint(self) -> tuple[object, ...]:
        return tuple((path, inode.mode, _content(inode)) for path, inode in self._inodes.walk())

    def _load(self, image: Image, before: Inodes) -> None:
        """Become the disk that `image` describes: what is reachable from the root, all of it durable."""
        pending = [(ROOT, ROOT)]
        table = self._inodes.table
        table.clear()
        durable = Image({}, {}, {})
        while pending:
            number, parent = pending.pop()
            if number in table:  # another name of a file
                table[number].links += 1
                continue
            old = before.table[number]
            inode = Inode(number, old.kind, image.modes[number], links=1, parent=parent, target=old.target)
            table[number] = inode
            durable.modes[number] = inode.mode
            if old.kind == "directory":
                inode.entries, inode.links = dict(image.entries[number]), 2
                durable.entries[number] = dict(inode.entries)
                pending.extend((inner, number) for inner in inode.entries.values())
            else:
                inode.data = bytearray(image.contents[number])
                durable.contents[number] = image.contents[number]
        self._inodes.next_number = before.next_number
        self._durability = Durability(self.profile, durable)

    # What programs call: reading

    def scandir(self, at: int | None, name: str, *, follow: bool = False) -> list[Entry]:
        with self._lock:
            entries = self._directory_named(at, name, follow).entries
            return [Entry(name, self._inodes.table[inner].kind) for name, inner in entries.items()]

    def open_directory(self, at: int | None, name: str, *, follow: bool = False) -> int:
        with self._lock:
            inode = self._directory_named(at, name, follow)
            return self._handle(_Open(inode, self._inodes.path(inode)))

    def open_read(self, at: int | None, name: str) -> int:
        with self._lock:
            directory, last = self._locate(at, name)
            inode = self._inodes.lookup(directory, last)
            if inode.kind == "link":
                raise os_error(errno.ELOOP, name)
            return self._handle(_Open(inode, self._inodes.path(directory, last)))

    def status(self, handle: int) -> Status:
        with self._lock:
            return self._status(self._opened(handle).inode)

    def lstat(self, at: int | None, name: str) -> Status:
        with self._lock:
            return self._status(self._inodes.lookup(*self._locate(at, name)))

    def _status(self, inode: Inode) -> Status:
        size = len(inode.target) if inode.kind == "link" else len(inode.data)
        return Status(inode.kind, size, inode.mode, _DEVICE, inode.links)

    def pread(self, handle: int, buffer: memoryview, offset: int) -> int:
        with self._lock:
            opened = self._opened(handle)
            if opened.writable:
                raise os_error(errno.EBADF, opened.path)
            if opened.inode.kind == "directory":
                raise os_error(errno.EISDIR, opened.path)
            part = opened.inode.data[offset : offset + len(buffer)]
            buffer[: len(part)] = part
            return len(part)

    def readlink(self, at: int | None, name: str) -> str:
        with self._lock:
            inode = self._inodes.lookup(*self._locate(at, name))
            if inode.kind != "link":
                raise os_error(errno.EINVAL, name)
            return inode.target

    def close(self, handle: int) -> None:
        with self._lock:
            self._opened(handle)
            del self._open[handle]

    def free_bytes(self, handle: int) -> int:
        with self._lock:
            self._opened(handle)
            return self._free()

    def host(self) -> str:
        return self._host

    def watch(self, path: str) -> Watch | None:
        return None

    def file_system(self, path: str) -> str:
        return self._kind

    # What programs call: changing

    def create(self, at: int | None, name: str, mode: int) -> int:
        with self._lock:
            directory, last = self._vacancy(at, name)
            path = self._carry_out("create", self._inodes.path(directory, last))
            inode = self._make(directory, last, "file", mode & ~self._umask)
            return self._handle(_Open(inode, path, writable=True))

    def pwrite(self, handle: int, data: memoryview, offset: int) -> int:
        with self._lock:
            opened = self._opened(handle)
            if not opened.writable:
                raise os_error(errno.EBADF, opened.path)
            inode = opened.inode
            part = bytes(data)
            room = self._free()
            if offset + len(part) - len(inode.data) > room:
                part = part[: max(0, len(inode.data) + room - offset)]
                if not part:
                    raise os_error(errno.ENOSPC, opened.path)
            self._carry_out("pwrite", opened.path)
            if offset > len(inode.data):
                inode.data.extend(bytes(offset - len(inode.data)))
            inode.data[offset : offset + len(part)] = part
            self._durability.written(inode.number, offset, part)
            return len(part)

    def fsync(self, handle: int) -> None:
        self._sync("fsync", handle)

    def fsync_directory(self, handle: int) -> None:
        self._sync("fsync_directory", handle)

    def _sync(self, name: str, handle: int) -> None:
        with self._lock:
            opened = self._opened(handle)
            self._carry_out(name, opened.path)
            if opened.inode.kind == "directory":
                self._durability.directory_synced(opened.inode.number)
            else:
                self._durability.file_synced(opened.inode.number)

    def chmod(self, handle: int, mode: int) -> None:
        with self._lock:
            opened = self._opened(handle)
            self._carry_out("chmod", opened.path)
            opened.inode.mode = mode
            self._durability.mode_set(opened.inode.number, mode)

    def mkdir(self, at: int | None, name: str, mode: int) -> None:
        with self._lock:
            directory, last = self._vacancy(at, name)
            self._carry_out("mkdir", self._inodes.path(directory, last))
            self._make(directory, last, "directory", mode & ~self._umask)

    def symlink(self, target: str, at: int | None, name: str) -> None:
        with self._lock:
            directory, last = self._vacancy(at, name)
            self._carry_out("symlink", self._inodes.path(directory, last))
            self._make(directory, last, "link", 0o777, target)

    def link(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
        with self._lock:
            directory, last = self._locate(at, name)
            inode = self._inodes.lookup(directory, last)
            to_directory, to_last = self._vacancy(to, to_name)
            if inode.kind == "directory":
                raise os_error(errno.EPERM, name)
            self._carry_out("link", self._inodes.path(directory, last), self._inodes.path(to_directory, to_last))
            self._name(to_directory, to_last, inode)

    def unlink(self, at: int | None, name: str) -> None:
        with self._lock:
            directory, last = self._locate(at, name)
            if self._inodes.lookup(directory, last).kind == "directory":
                raise os_error(errno.EISDIR, name)
            self._carry_out("unlink", self._inodes.path(directory, last))
            self._unname(directory, last)

    def rmdir(self, at: int | None, name: str) -> None:
        with self._lock:
            directory, last = self._locate(at, name)
            inode = self._inodes.lookup(directory, last)
            if inode.kind != "directory":
                raise os_error(errno.ENOTDIR, name)
            if inode.entries:
                raise os_error(errno.ENOTEMPTY, name)
            self._carry_out("rmdir", self._inodes.path(directory, last))
            self._unname(directory, last)

    def rename(self, at: int | None, name: str, to: int | None, to_name: str) -> None:
        with self._lock:
            directory, last = self._locate(at, name)
            to_directory, to_last = self._locate(to, to_name)
            inode = self._inodes.lookup(directory, last)
            check_name(to_last)
            self._inodes.check_rename(inode, directory, to_directory, to_last)
            if to_directory.entries.get(to_last) == inode.number:
                return  # two names of one file: nothing is to be done, both stay
            self._carry_out("rename", self._inodes.path(directory, last), self._inodes.path(to_directory, to_last))
            if to_last in to_directory.entries:
                self._inodes.leave(to_directory, to_last)
            self._inodes.leave(directory, last)
            self._inodes.place(to_directory, to_last, inode)
            self._durability.named((directory.number, last, None), (to_directory.number, to_last, inode.number))

    # Parts

    def _require_power(self) -> None:
        if self._is_off:
            raise PowerCut

    def _carry_out(self, name: str, path: str, to: str = "") -> str:
        """Note a mutating operation that is about to happen, or cut the power instead."""
        if self._allowed is not None:
            if self._allowed == 0:
                self._is_off = True
                raise PowerCut
            self._allowed -= 1
        self.history.append(Operation(name, path, to))
        return path

    def _opened(self, handle: int) -> _Open:
        self._require_power()
        try:
            return self._open[handle]
        except KeyError:
            raise os_error(errno.EBADF, str(handle)) from None

    def _handle(self, opened: _Open) -> int:
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._open[handle] = opened
        return handle

    def _start(self, at: int | None) -> Inode:
        self._require_power()
        return self._inodes.root if at is None else self._opened(at).inode

    def _locate(self, at: int | None, name: str) -> tuple[Inode, str]:
        return self._inodes.locate(self._start(at), name)

    def _vacancy(self, at: int | None, name: str) -> tuple[Inode, str]:
        return self._inodes.vacancy(self._start(at), name)

    def _directory_named(self, at: int | None, name: str, follow: bool) -> Inode:
        inode = self._inodes.lookup(*self._inodes.locate(self._start(at), name, follow))
        if inode.kind != "directory":
            raise os_error(errno.ENOTDIR, name)
        return inode

    def _make(self, directory: Inode, last: str, kind: str, mode: int, target: str = "") -> Inode:
        """A new inode under its first name."""
        inode = self._inodes.new(kind, mode, target)
        self._durability.born(inode.number, mode, None if kind == "directory" else b"")
        self._name(directory, last, inode)
        return inode

    def _name(self, directory: Inode, last: str, inode: Inode) -> None:
        self._inodes.place(directory, last, inode)
        self._durability.named((directory.number, last, inode.number))

    def _unname(self, directory: Inode, last: str) -> None:
        self._inodes.leave(directory, last)
        self._durability.named((directory.number, last, None))

    def _free(self) -> int:
        if self.capacity_bytes is None:
            return _UNLIMITED_BYTES
        opened = {one.inode.number for one in self._open.values()}
        table = self._inodes.table.values()
        used = sum(len(inode.data) for inode in table if inode.links or inode.number in opened)
        return max(0, self.capacity_bytes - used)
