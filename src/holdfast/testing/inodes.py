"""A file system in memory as a running program sees it: inodes, names, and Linux's answers to wrong calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

ROOT = 1
_LINKS_MAX = 40
_NAME_BYTES_MAX = 255


@dataclass(eq=False)
class Inode:
    number: int
    kind: str  # "file" | "directory" | "link"
    mode: int
    data: bytearray = field(default_factory=bytearray)
    entries: dict[str, int] = field(default_factory=dict)
    target: str = ""
    links: int = 0
    parent: int = 0  # directories


class Inodes:
    """All inodes of one disk, by number; the root is 1. Raises OSError as Linux does."""

    def __init__(self) -> None:
        self.table: dict[int, Inode] = {ROOT: Inode(ROOT, "directory", 0o755, links=2, parent=ROOT)}
        self.next_number = ROOT + 1

    @property
    def root(self) -> Inode:
        return self.table[ROOT]

    def walk(self) -> Iterator[tuple[str, Inode]]:
        """Every path with what stands there; the root left out."""
        pending = [("", ROOT)]
        while pending:
            above, number = pending.pop()
            for name, inner in sorted(self.table[number].entries.items()):
                inode = self.table[inner]
                yield f"{above}/{name}", inode
                if inode.kind == "directory":
                    pending.append((f"{above}/{name}", inner))

    def locate(self, start: Inode, name: str, follow: bool = False) -> tuple[Inode, str]:
        """The directory and the last component that `name` means; symlinks before the last are followed."""
        current = self.root if name.startswith("/") else start
        parts = [part for part in name.split("/") if part]
        num_links = 0
        while parts:
            if current.kind != "directory":
                raise os_error(errno.ENOTDIR, name)
            part = parts.pop(0)
            if part == "..":
                current = self.table[current.parent]
                continue
            found = current.entries.get(part)
            is_link = found is not None and self.table[found].kind == "link"
            if not parts and not (follow and is_link):
                return current, part
            inode = self.lookup(current, part)
            if is_link:
                num_links += 1
                if num_links > _LINKS_MAX:
                    raise os_error(errno.ELOOP, name)
                parts = [one for one in inode.target.split("/") if one] + parts
                current = self.root if inode.target.startswith("/") else current
                continue
            current = inode
        return current, "."

    def lookup(self, directory: Inode, last: str) -> Inode:
        if last == ".":
            return directory
        check_name(last)
        found = directory.entries.get(last)
        if found is None:
            raise os_error(errno.ENOENT, last)
        return self.table[found]

    def vacancy(self, start: Inode, name: str) -> tuple[Inode, str]:
        """Where a new name goes. EEXIST if it is taken, ENOENT if the directory was removed."""
        directory, last = self.locate(start, name)
        if last == "." or last in directory.entries:
            raise os_error(errno.EEXIST, name)
        check_name(last)
        if directory.links == 0:
            raise os_error(errno.ENOENT, name)
        return directory, last

    def new(self, kind: str, mode: int, target: str = "") -> Inode:
        inode = Inode(self.next_number, kind, mode, target=target)
        self.next_number += 1
        self.table[inode.number] = inode
        return inode

    def place(self, directory: Inode, last: str, inode: Inode) -> None:
        directory.entries[last] = inode.number
        if inode.kind == "directory":
            inode.links, inode.parent = 2, directory.number
        else:
            inode.links += 1

    def leave(self, directory: Inode, last: str) -> None:
        inode = self.table[directory.entries.pop(last)]
        inode.links = 0 if inode.kind == "directory" else inode.links - 1

    def check_rename(self, inode: Inode, directory: Inode, to_directory: Inode, to_last: str) -> None:
        """The errors of rename, in the kernel's order."""
        if inode.kind == "directory" and self.is_below(to_directory, inode):
            raise os_error(errno.EINVAL, to_last)
        found = to_directory.entries.get(to_last)
        if found is None:
            if to_directory.links == 0:
                raise os_error(errno.ENOENT, to_last)
            return
        there = self.table[found]
        if there is inode:
            return
        if there.kind == "directory" and self.is_below(directory, there):
            raise os_error(errno.ENOTEMPTY, to_last)
        if inode.kind != "directory" and there.kind == "directory":
            raise os_error(errno.EISDIR, to_last)
        if inode.kind == "directory" and there.kind != "directory":
            raise os_error(errno.ENOTDIR, to_last)
        if there.entries:
            raise os_error(errno.ENOTEMPTY, to_last)

    def is_below(self, directory: Inode, above: Inode) -> bool:
        """Whether `directory` is `above` or lies below it."""
        while directory is not above:
            if directory.number == ROOT or directory.links == 0:
                return False
            directory = self.table[directory.parent]
        return True

    def path(self, directory: Inode, last: str = "") -> str:
        """The full path of a directory, or of a name in it."""
        parts = [last] if last not in ("", ".") else []
        while directory.number != ROOT:
            above = self.table[directory.parent]
            names = [name for name, number in above.entries.items() if number == directory.number]
            parts.append(names[0] if names else "(removed)")
            directory = above
        return "/" + "/".join(reversed(parts))


def check_name(name: str) -> None:
    if len(os.fsencode(name)) > _NAME_BYTES_MAX:
        raise os_error(errno.ENAMETOOLONG, name)


def os_error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
