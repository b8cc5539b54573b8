"""The storage contract: all that the weight channel asks of a place to keep bytes.

Paths are relative, '/'-separated and already checked (`holdfast.core.names.check_path`); an implementation
refuses whatever would leave its root, a symlink in any component included. Records are small files that are
read and written whole. A *tree* is the directory of one version: it is invisible until `commit_tree`, and
whole from then on until `retire_tree`.

What an implementation can do is data (`Capabilities`), never a type test. `tests/conformance` runs one suite
over every implementation, the same for all.

Errors, for all methods alike:
    NotVisibleError      ENOENT, ESTALE, ENOTDIR on the way: absent, or not visible here yet. Also for a call that
                         writes: its directory is gone, or somebody swept what it was writing.
    ConflictError        code "exists": somebody's bytes stand there already (create, begin_tree, file, commit_tree,
                         link, make_directory).
    OutcomeUnknownError  the answer was lost, and reading back could not tell. Never a guess.
    IntegrityError       "not_a_file", "not_a_directory" (a symlink on the way), "too_large": nothing that the
                         protocol writes.
    UnavailableError     everything else (EIO, ENOSPC, EACCES, EROFS …), with `code` = "errno_<name in lower case>"
                         ("errno_enospc") and `fields["path"]`.
"""

from __future__ import annotations

import pathlib
from typing import Protocol

import msgspec

from holdfast.core.names import check_path
from holdfast.errors import UsageError


def check_component(name: str) -> str:
    """`name` if it is one component of a path. UsageError otherwise."""
    if "/" in check_path(name):
        raise UsageError(f"{name!r} is a path where one name is wanted", code="bad_path")
    return name


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a storage guarantees. Recorded in channel.json as probed, shown by `holdfast doctor`."""

    kind: str  # "posix" | "memory" | …, for people only
    rename_tree: bool  # a whole tree becomes visible in one atomic rename; else the manifest's put is the commit
    local_paths: bool  # local_path() names files that other programs can open
    links: bool  # link() can leave a name for readers of the legacy layout
    local: bool  # only this machine sees it: nothing becomes visible late
    notifies: bool  # watch() wakes on changes made on this machine; polling stays the truth


class Entry(msgspec.Struct, frozen=True, order=True):
    """One name in a listing."""

    name: str
    kind: str  # "file" | "directory" | "link" | "other"


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """Where this process sees the storage from. Equal mounts share one cache, so nothing is seen late between them."""

    host: str  # an id of the running kernel (machine id and boot id), not a host name
    device: str  # the file system's device number there


class Reader(Protocol):
    """One open payload file; positional reads, safe from several threads at once."""

    @property
    def size(self) -> int:
        """Length in bytes, asked of the open file."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; return the number of bytes, short only at the end of the file."""

    def close(self) -> None: ...


class Writer(Protocol):
    """One new payload file with one writing process; positional writes, safe from several threads at once."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data` at `offset` (bytes)."""

    def close(self) -> None:
        """Durability: the file's bytes survive a power cut once this returned. An error here fails the publish."""

    def abort(self) -> None:
        """Close without promising anything; the tree will be thrown away."""


class TreeWriter(Protocol):
    """A version being written: nobody can see it."""

    def file(self, path: str) -> Writer:
        """A new file `path` ('/'-separated, below the tree; directories are made as needed)."""

    def abort(self) -> None:
        """Throw the tree away; idempotent. What a crash leaves behind is found by `list_garbage`."""


class Storage(Protocol):
    """See the module's docstring for paths and errors."""

    @property
    def capabilities(self) -> Capabilities: ...

    def list(self, directory: str) -> tuple[Entry, ...]:
        """A fresh listing of one directory ("" is the root), sorted by name; () where it isn't there.

        Temporaries of `create` and `replace` are left out.

        On NFS this is also what makes names below it visible: call it before the first look at any name that
        was not in a listing yet (a name asked for too early stays "missing" there for 30 s and more).
        """

    def list_trees(self) -> tuple[str, ...]:
        """Names of the committed trees (below versions/), by a fresh listing, sorted."""

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        """A whole record. IntegrityError code "too_large" beyond the limit, before its bytes are read."""

    def open(self, path: str) -> Reader:
        """Open a payload file; symlinks, devices and directories are refused (IntegrityError code "not_a_file")."""

    def create(self, path: str, data: bytes) -> None:
        """Make a record if nothing stands there: of many at once, exactly one wins; it appears whole.

        Durability: the record and its name survive a power cut once this returned. Retried safely: finding the
        very bytes that one was asked to write counts as success, so put a nonce into them.
        """

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Put a record in place of whatever stands there; a reader sees the old bytes or the new, never a mix.

        Durability: as `create`. Has one writer by protocol, so a retry is always safe. durable=False is for hints
        (CURRENT, a publisher's beat): a power cut may leave the old bytes, the new ones, or an empty file, which
        readers bear.
        """

    def delete(self, path: str) -> None:
        """Remove a record or link; absent is success. Durability: as `create`."""

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """Make directory `path` ("" is the root itself) with exactly `mode`, missing parents with 0755.

        One that is there keeps its mode. Records are created only in directories made by this; a storage without
        directories does nothing. Durability: the directories survive a power cut, those found there as well.
        """

    def begin_tree(self, name: str, nonce: str) -> TreeWriter:
        """Start writing version `name`; `nonce` names the staging place, unique to this publish."""

    def commit_tree(self, name: str, nonce: str, manifest: bytes) -> None:
        """Write the manifest last and make the tree visible under versions/`name`, in one atomic step.

        Durability, in this order: payload files (closed before), STABLE (in the tree by now), manifest.json, every
        directory of the tree, the rename (or put-if-absent of the manifest), versions/ itself. When it returned, the
        version survives a power cut. A lost answer is judged by reading back: ours = success, else ConflictError
        code "exists", else OutcomeUnknownError. After UnavailableError nothing is visible; after OutcomeUnknownError
        it may be. In both cases the same call may be made again, and finishes what is unfinished.
        """

    def retire_tree(self, name: str, nonce: str) -> None:
        """Make a version invisible in one atomic step, then remove its files; absent is success.

        `nonce` is new for each version retired; the same call may be made again after an error.
        A crash after the step leaves garbage in staging/ (or files without manifest), never half a version.
        """

    def list_garbage(self) -> tuple[str, ...]:
        """What a writer is writing or has left behind, as a fresh listing shows it, each as one opaque name.

        Nonces of staging places (being written, abandoned, retired half-way), and whatever else the storage needs to
        find again. Those of a live writer are among them: remove what stayed listed, under this very name, for longer
        than anybody alive can be silent.
        """

    def remove_garbage(self, nonce: str) -> None:
        """Remove one name of `list_garbage` whole; idempotent. The caller knows that nobody writes there any more.

        A committed version is never touched by it. A writer that lives all the same gets NotVisibleError.
        """

    def link(self, path: str, name: str) -> None:
        """Leave `path` as a symlink to version `name`; never repoints. ConflictError if something else stands there.

        Durability: none promised; it is a hint for older readers. UsageError without capability links.
        """

    def link_target(self, path: str) -> str | None:
        """The name of the version that the link at `path` leads to; None where there is no link of ours."""

    def local_path(self, path: str) -> pathlib.Path:
        """The path that other programs on this machine open. UsageError without capability local_paths."""

    def mount(self) -> Mount: ...

    def free_bytes(self) -> int | None:
        """Space that this user can still write, or None where the storage has no such figure."""

    def watch(self) -> Watch | None:
        """Local change notification for CURRENT and cycles/, or None without capability notifies."""


class Watch(Protocol):
    """Wakes early; may miss, may wake for nothing."""

    def wait(self, timeout_s: float) -> bool:
        """True when something may have changed, False after `timeout_s` seconds."""

    def wake(self) -> None:
        """Make a wait() in another thread return now."""

    def close(self) -> None: ...
