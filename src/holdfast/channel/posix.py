"""The storage contract on a directory of a POSIX file system, local or on a network.

A small file appears whole: it is written under a temporary name (`.tmp-…`, in no listing), synced, then given its
name by `link` (create: one winner) or `rename` (replace). A version appears whole: everything in it is synced, then
its directory is renamed from staging/ into versions/. A call whose answer may be lost is judged by reading back.

A crash leaves `.tmp-…` files and directories in staging/; `list_garbage` names both. Removing one that a live
but frozen writer still needs does no harm: its link or rename fails, nothing becomes visible, and it tries again.
"""

from __future__ import annotations

import errno
import os
import pathlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from holdfast.channel.ops import Ops, RealOps
from holdfast.channel.posixfiles import STAGING, PosixReader, PosixTreeWriter
from holdfast.channel.rooted import DIRECTORY_MODE, TEMPORARY, Root, new_temporary, os_errors
from holdfast.channel.storage import Capabilities, Entry, Mount, Watch, check_component
from holdfast.channel.watch import LOCAL
from holdfast.core.manifest import MANIFEST
from holdfast.core.names import check_nonce, check_path, path_problem
from holdfast.errors import ConflictError, HoldfastError, IntegrityError, OutcomeUnknownError, UsageError

VERSIONS = "versions"
_RETIRED = "retired-"
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


class PosixStorage:
    """A channel in the directory `root`. Makes no call before the first method is used; safe from several threads.

    Attributes:
        directory_sync: whether the file system can sync a directory (None: not tried yet). Where it can't, a power
            cut can take back names whose call had returned.
    """

    def __init__(self, root: str | os.PathLike[str], ops: Ops | None = None) -> None:
        path = os.path.abspath(os.fspath(root))
        self._ops: Ops = RealOps() if ops is None else ops
        self._root = Root(path, self._ops)
        self._capabilities: Capabilities | None = None

    def __repr__(self) -> str:
        return f"PosixStorage({self._root.path!r})"

    @property
    def directory_sync(self) -> bool | None:
        return self._root.directory_sync

    @property
    def capabilities(self) -> Capabilities:
        known = self._capabilities
        if known is None:
            watch = self.watch()
            if watch is not None:
                watch.close()
            file_system = self._ops.file_system(self._root.path)
            known = Capabilities(
                kind="posix",
                rename_tree=True,
                local_paths=True,
                links=True,
                local=file_system in LOCAL,
                notifies=watch is not None,
            )
            if file_system:  # else it is not there yet
                self._capabilities = known
        return known

    # Listing and reading

    def list(self, directory: str) -> tuple[Entry, ...]:
        with os_errors(directory):
            try:
                entries = self._scan(directory)
            except (FileNotFoundError, NotADirectoryError):
                return ()
        return tuple(sorted(entry for entry in entries if not entry.name.startswith(TEMPORARY)))

    def _scan(self, directory: str) -> Sequence[Entry]:
        if not directory:
            return self._root.scan()
        with self._root.parent(check_path(directory)) as (at, name):
            try:
                return self._ops.scandir(at, name)
            except NotADirectoryError:
                self._root.refuse_link(at, name, directory)
                raise

    def list_trees(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.list(VERSIONS) if entry.kind == "directory")

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        with os_errors(path), self._root.parent(check_path(path)) as (at, name):
            return self._root.read_file(at, name, limit_bytes, path)

    def open(self, path: str) -> PosixReader:
        with os_errors(path), self._root.parent(check_path(path)) as (at, name):
            handle, size = self._root.open_file(at, name, path)
            return PosixReader(self._root, handle, size, path)

    # Records

    def create(self, path: str, data: bytes) -> None:
        with self._written(path, data) as (at, temporary, name):
            try:
                self._ops.link(at, temporary, at, name)
            except OSError as error:
                if not self._stands(at, name, data, path):
                    if error.errno != errno.EEXIST:
                        raise
                    raise OutcomeUnknownError(
                        f"{path}: something stood there, and it is gone on reading back",
                        code="create_unknown",
                        hint="list the directory and try again with the same bytes",
                        path=path,
                    ) from error
            self._root.sync_directory(at)
            self._root.discard(at, temporary)

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        with self._written(path, data, sync=durable) as (at, temporary, name):
            try:
                self._ops.rename(at, temporary, at, name)
            except OSError as error:
                try:
                    if not self._stands(at, name, data, path):
                        raise
                except ConflictError:
                    raise error from None
            if durable:
                self._root.sync_directory(at)

    @contextmanager
    def _written(self, path: str, data: bytes, *, sync: bool = True) -> Iterator[tuple[int, str, str]]:
        """Directory handle, temporary name (bytes durable) and final name, for the step that makes them visible."""
        above, _, name = check_path(path).rpartition("/")
        with os_errors(path), self._root.directory(above) as at:
            temporary = self._root.write_temporary(at, data, sync=sync)
            try:
                yield at, temporary, name
            except (OSError, HoldfastError):
                self._root.discard(at, temporary)
                raise

    def _stands(self, at: int, name: str, data: bytes, path: str) -> bool:
        """Whether exactly `data` stands at `path`; False: nothing does, by a fresh listing.

        The listing comes first because a failed call leaves "missing" in the name cache of an NFS client.

        Raises:
            ConflictError: something else stands there.
            OutcomeUnknownError: it could not be read back.
        """
        try:
            if not any(entry.name == name for entry in self._scan(path.rpartition("/")[0])):
                return False
            if self._root.read_file(at, name, len(data), path) == data:
                return True
        except IntegrityError:
            pass  # no file, or more bytes than ours: not ours
        except OSError as error:
            raise OutcomeUnknownError(
                f"{path}: the answer was lost, and reading back failed: {error.strerror}",
                code="read_back_failed",
                hint="read it again when the storage answers, before you repeat the call",
                path=path,
            ) from error
        raise ConflictError(f"{path}: somebody else's bytes stand there", code="exists", path=path)

    def delete(self, path: str) -> None:
        above, _, name = check_path(path).rpartition("/")
        with os_errors(path), suppress(FileNotFoundError), self._root.directory(above) as at:
            with suppress(FileNotFoundError):
                self._ops.unlink(at, name)
            self._root.sync_directory(at)

    def make_directory(self, path: str, mode: int = DIRECTORY_MODE) -> None:
        if not path:
            above, missing = self._existing()
            if missing:
                PosixStorage(above, self._ops).make_directory(missing, mode)
            else:
                self._sync_above()
            return
        parts = check_path(path).split("/")
        with os_errors(path):
            for i, name in enumerate(parts):
                with self._root.directory("/".join(parts[:i])) as at:
                    self._make_one(at, name, mode if i == len(parts) - 1 else DIRECTORY_MODE)

    def _sync_above(self) -> None:
        """Durability: the root's own name, where its parent may be read; whoever made the root may have crashed."""
        with os_errors(""), suppress(PermissionError):
            handle = self._ops.open_directory(None, f"{self._root.path}/..", follow=True)
            try:
                self._root.sync_directory(handle)
            finally:
                self._root.close_read(handle)

    def _existing(self) -> tuple[str, str]:
        """The longest part of the root's path that exists, and the rest."""
        above, missing = self._root.path, ""
        while True:
            with os_errors(""), suppress(FileNotFoundError):
                self._root.close_read(self._ops.open_directory(None, above, follow=True))
                return above, missing
            above, _, name = above.rpartition("/")
            above, missing = above or "/", f"{name}/{missing}".rstrip("/")

    def _make_one(self, at: int, name: str, mode: int) -> None:
        """Make one directory, with its mode from the start; one that is there already keeps its own mode."""
        try:
            there = self._ops.lstat(at, name).kind == "directory"
        except FileNotFoundError:
            temporary = new_temporary()
            self._root.make_directory(at, temporary, mode, sync=True)
            try:
                self._ops.rename(at, temporary, at, name)
            except OSError as error:
                self._root.remove_tree(at, temporary)
                if error.errno not in _TAKEN:
                    raise
            there = self._ops.lstat(at, name).kind == "directory"
        if not there:
            self._root.refuse_link(at, name, name)
            raise ConflictError(f"{name}: something that is no directory stands there", code="exists", path=name)
        self._root.sync_directory(at)

    # Versions

    def begin_tree(self, name: str, nonce: str) -> PosixTreeWriter:
        check_component(name)
        with os_errors(f"{STAGING}/{nonce}"), self._root.directory(STAGING) as staging:
            self._root.make_directory(staging, check_nonce(nonce), DIRECTORY_MODE)
        return PosixTreeWriter(self._root, nonce)

    def commit_tree(self, name: str, nonce: str, manifest: bytes) -> None:
        path = f"{VERSIONS}/{check_component(name)}"
        with (
            os_errors(path),
            self._root.directory(VERSIONS) as versions,
            self._root.directory(STAGING) as staging,
        ):
            try:
                self._seal(f"{STAGING}/{check_nonce(nonce)}", manifest)
                self._ops.rename(staging, nonce, versions, name)
            except OSError as error:
                if not self._committed(versions, name, manifest, error):
                    self._require_staged(nonce, path, error)
                    raise
            try:
                self._root.sync_directory(versions)
                self._root.sync_directory(staging)
            except OSError as error:
                raise OutcomeUnknownError(
                    f"{path}: visible, but not known to survive a power cut: {error.strerror}",
                    code="commit_not_durable",
                    hint="call commit_tree again with the same arguments",
                    path=path,
                ) from error

    def _seal(self, staged: str, manifest: bytes) -> None:
        """Durability: the manifest and every directory of the staged tree; the last step before it is renamed."""
        with self._root.directory(staged) as tree:
            try:
                self._root.write_file(tree, MANIFEST, manifest)
            except FileExistsError:  # of an attempt that failed
                self._ops.unlink(tree, MANIFEST)
                self._root.write_file(tree, MANIFEST, manifest)
        pending = [staged]
        while pending:
            directory = pending.pop()
            with self._root.directory(directory) as handle:
                pending.extend(f"{directory}/{e.name}" for e in self._scan(directory) if e.kind == "directory")
                self._root.sync_directory(handle)

    def _committed(self, versions: int, name: str, manifest: bytes, cause: OSError) -> bool:
        """After a failed step: whether the tree stands under its name with this very manifest."""
        path = f"{VERSIONS}/{name}"
        if name not in self.list_trees():
            if cause.errno in _TAKEN:
                raise ConflictError(f"{path}: something that is no version stands there", code="exists", path=path)
            return False
        tree = self._ops.open_directory(versions, name)
        try:
            if self._stands(tree, MANIFEST, manifest, f"{path}/{MANIFEST}"):
                return True
        finally:
            self._root.close_read(tree)
        raise ConflictError(f"{path}: a directory without a manifest stands there", code="exists", path=path)

    def _require_staged(self, nonce: str, path: str, cause: OSError) -> None:
        """After a failed step and no tree under its name: OutcomeUnknownError if its staging place is gone, too."""
        if cause.errno != errno.ENOENT and not any(entry.name == nonce for entry in self._scan(STAGING)):
            raise OutcomeUnknownError(
                f"{path}: neither there nor in staging after {cause.strerror}",
                code="commit_unknown",
                hint="list the versions again before you publish the step anew",
                path=path,
            ) from cause

    def retire_tree(self, name: str, nonce: str) -> None:
        path = f"{VERSIONS}/{check_component(name)}"
        target = _RETIRED + check_nonce(nonce)
        with (
            os_errors(path),
            self._root.directory(VERSIONS) as versions,
            self._root.directory(STAGING) as staging,
        ):
            try:
                self._ops.rename(versions, name, staging, target)
            except OSError as error:
                if any(entry.name == name for entry in self._scan(VERSIONS)):
                    if error.errno in _TAKEN:
                        raise UsageError(f"nonce {nonce!r} was used for another tree", code="bad_nonce") from error
                    raise
            self._root.sync_directory(versions)  # before the first unlink, or a power cut shows half a version again
            self._root.remove_tree(staging, target)

    # Garbage

    def list_garbage(self) -> tuple[str, ...]:
        with os_errors(""):
            root = self._scan("")
        found = [entry.name for entry in root if entry.name.startswith(TEMPORARY)]
        for directory in (entry.name for entry in root if entry.kind == "directory"):
            with os_errors(directory):
                try:
                    inside = self._scan(directory)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except PermissionError:
                    if directory == STAGING:
                        raise
                    continue  # somebody's own directory
            for entry in inside:
                if entry.name.startswith(TEMPORARY):
                    found.append(f"{directory}/{entry.name}")
                elif directory == STAGING:
                    found.append(entry.name)
        return tuple(sorted(name for name in found if path_problem(name) is None))

    def remove_garbage(self, nonce: str) -> None:
        above, _, name = check_path(nonce).rpartition("/")
        if not name.startswith(TEMPORARY):
            if above:
                raise UsageError(f"{nonce!r} names no garbage", code="bad_nonce", hint="use what list_garbage gave")
            above = STAGING
        with os_errors(nonce), suppress(FileNotFoundError), self._root.directory(above) as at:
            if above == STAGING and not name.startswith((_RETIRED, TEMPORARY)):
                # Away from its writer in one step: one that wakes now must not commit what is left of it.
                doomed = _RETIRED + secrets.token_hex(8)
                self._ops.rename(at, name, at, doomed)
                self._root.sync_directory(at)
                name = doomed
            self._root.remove_tree(at, name)

    # Surroundings

    def link(self, path: str, name: str) -> None:
        above, _, last = check_path(path).rpartition("/")
        target = "../" * path.count("/") + f"{VERSIONS}/{check_component(name)}"
        with os_errors(path), self._root.directory(above) as at:
            try:
                self._ops.symlink(target, at, last)
            except OSError as error:
                found = self._read_link(at, last)
                if found is None and error.errno != errno.EEXIST:
                    raise
                if found != target:
                    raise ConflictError(
                        f"{path}: leads to {found or 'something else'}, not to {target}",
                        code="exists",
                        hint="a link is never repointed; remove it by hand if it is wrong",
                        path=path,
                    ) from error

    def link_target(self, path: str) -> str | None:
        above, _, last = check_path(path).rpartition("/")
        before = "../" * path.count("/") + f"{VERSIONS}/"
        target = None
        with os_errors(path), suppress(FileNotFoundError), self._root.directory(above) as at:
            target = self._read_link(at, last)
        return target.removeprefix(before) if target is not None and target.startswith(before) else None

    def _read_link(self, at: int, name: str) -> str | None:
        """Where a symlink leads, or None: there is none."""
        try:
            return self._ops.readlink(at, name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            return None

    def local_path(self, path: str) -> pathlib.Path:
        return pathlib.Path(self._root.path, check_path(path)) if path else pathlib.Path(self._root.path)

    def mount(self) -> Mount:
        with os_errors(""), self._root.directory("") as handle:
            return Mount(host=self._ops.host(), device=str(self._ops.status(handle).device))

    def free_bytes(self) -> int | None:
        with os_errors(""), self._root.directory("") as handle:
            return self._ops.free_bytes(handle)

    def watch(self) -> Watch | None:
        with os_errors(""):
            return self._ops.watch(self._root.path) if self._root.appeared() else None
