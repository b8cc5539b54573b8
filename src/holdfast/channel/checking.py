"""Checking one version against its manifest, in place or while it is copied to a local directory.

Every try begins with fresh listings of the directories on the way, since a name that was asked for too early stays
"missing" on an NFS client for 30 s and more, and a listing cures it.
"""

from __future__ import annotations

import pathlib
import secrets
from collections.abc import Callable
from contextlib import closing

import xxhash

from holdfast.channel.beats import clock_s
from holdfast.channel.copies import Copies
from holdfast.channel.payload import Progress, copy_verified, verify
from holdfast.channel.storage import Reader, Storage
from holdfast.core.consume import Checked, Damaged, NotVisible
from holdfast.core.manifest import MANIFEST, MANIFEST_BYTES_MAX, STABLE, Manifest, decode_manifest
from holdfast.core.names import Version
from holdfast.errors import ConflictError, HoldfastError, IntegrityError, NotVisibleError, UnavailableError

STABLE_BYTES_MAX = 256
STALE_CODES = frozenset({"short_file", "wrong_digest", "bad_stable"})  # may be right at the next look


def stable_text(manifest: bytes) -> bytes:
    """What STABLE says: the digest of manifest.json, so that the manifest itself is checked too."""
    return xxhash.xxh3_128_hexdigest(manifest).encode() + b"\n"


def read_manifest(store: Storage, version: Version) -> tuple[Manifest, bytes]:
    """The manifest of a version, checked against its STABLE, and its bytes.

    Raises:
        NotVisibleError: missing, or not visible here yet.
        IntegrityError: code "bad_stable" (may be right at the next look), "bad_manifest", "newer_format", "not_a_file".
    """
    directory = f"versions/{version}"
    store.list("versions")
    store.list(directory)
    data = store.read(f"{directory}/{MANIFEST}", limit_bytes=MANIFEST_BYTES_MAX)
    stable = store.read(f"{directory}/{STABLE}", limit_bytes=STABLE_BYTES_MAX)
    if stable != stable_text(data):
        raise IntegrityError(f"{directory}: STABLE does not fit {MANIFEST}", code="bad_stable")
    return decode_manifest(data, version=version), data


def verify_version(store: Storage, version: Version, progress: Progress | None = None) -> Manifest:
    """Read one version whole and check it. Raises as `read_manifest` and `payload.verify`."""
    manifest, _ = read_manifest(store, version)
    _list_all(store, manifest)
    verify(manifest, lambda path: store.open(f"versions/{version}/{path}"), progress=progress)
    return manifest


class Checker:
    """Checks versions of `store`, and keeps verified copies in `copies` if that is given."""

    def __init__(self, store: Storage, copies: Copies | None) -> None:
        self._store = store
        self._copies = copies
        self._checked: dict[Version, Manifest] = {}
        self._right: dict[Version, set[str]] = {}

    def check(self, version: Version, *, again: bool) -> Checked | NotVisible | Damaged:
        """One try. UnavailableError: the storage is away, which says nothing about the version."""
        right = self._right.setdefault(version, set())
        try:
            manifest, data = read_manifest(self._store, version)
            if again or any("/" in file.path for file in manifest.files):
                _list_all(self._store, manifest)
            if self._copies is None:
                verify(manifest, self._opener(version), done=right)
            else:
                self._copy(version, manifest, data)
        except NotVisibleError as error:
            return NotVisible(str(error), len(right), clock_s())
        except IntegrityError as error:
            if error.code in STALE_CODES:
                return NotVisible(str(error), len(right), clock_s())
            self._right.pop(version, None)
            return Damaged(str(error))
        self._right.pop(version, None)
        self._checked[version] = manifest
        return Checked()

    def check_again(self, version: Version) -> Checked | NotVisible | Damaged:
        """As `check`, of what an earlier life had; a copy needs no channel: the version may be swept by now."""
        if self._copies is not None and str(version) in self.copies():
            try:
                self._checked[version] = verify_version(self._copies.storage, version)
            except (IntegrityError, NotVisibleError) as error:
                self.drop(version)
                return Damaged(f"its copy: {error}")
            return Checked()
        return self.check(version, again=True)

    def result(self, version: Version) -> tuple[Manifest, pathlib.Path | None]:
        """What the last successful check of `version` found."""
        return self._checked.pop(version), self.place(version)

    def place(self, version: Version) -> pathlib.Path | None:
        """The copy's directory, or None where versions are used in place."""
        return self._copies.storage.local_path(f"versions/{version}") if self._copies is not None else None

    def copies(self) -> frozenset[str]:
        """Names of the complete copies that an earlier life left."""
        return frozenset(self._copies.storage.list_trees()) if self._copies is not None else frozenset()

    def drop(self, version: Version) -> None:
        """Remove the copy of `version`, if there is one."""
        if self._copies is not None:
            self._copies.storage.retire_tree(str(version), secrets.token_hex(4))

    def open(self) -> None:
        """Take the directory of the copies, if there are any; idempotent. Raises as `Copies.open`."""
        if self._copies is not None:
            self._copies.open()

    def close(self) -> None:
        """Leave the copies to the next process of this name."""
        if self._copies is not None:
            self._copies.close()

    def tidy(self, keep: frozenset[Version]) -> None:
        """Remove copies that nobody uses any more, and what a crash left half-way."""
        if self._copies is None:
            return
        for directory in ("", "versions", "staging"):
            self._copies.storage.make_directory(directory, 0o755)
        for nonce in self._copies.storage.list_garbage():
            self._copies.storage.remove_garbage(nonce)
        for name in self.copies() - {str(version) for version in keep}:
            self._copies.storage.retire_tree(name, secrets.token_hex(4))

    def _opener(self, version: Version) -> Callable[[str], Reader]:
        return lambda path: self._store.open(f"versions/{version}/{path}")

    def _copy(self, version: Version, manifest: Manifest, data: bytes) -> None:
        assert self._copies is not None
        if str(version) in self._copies.storage.list_trees():
            try:
                verify_version(self._copies.storage, version)
            except (IntegrityError, NotVisibleError):
                self.drop(version)
            else:
                return
        self._copies.check_room(manifest.num_bytes)
        nonce = f"copy-{secrets.token_hex(4)}"
        tree = self._copies.storage.begin_tree(str(version), nonce)
        try:
            copy_verified(manifest, self._opener(version), tree)
            with closing(tree.file(STABLE)) as stable:
                stable.write_at(0, memoryview(stable_text(data)))
            self._copies.storage.commit_tree(str(version), nonce, data)
        except ConflictError as error:
            tree.abort()
            raise UnavailableError(f"the copy of {version} is in the way: {error}", code="copy_exists") from error
        except HoldfastError:
            tree.abort()
            raise


def _list_all(store: Storage, manifest: Manifest) -> None:
    """A fresh listing of every directory that the manifest's files lie in."""
    directories = {file.path.rpartition("/")[0] for file in manifest.files}
    for directory in sorted(directories):
        store.list(f"versions/{manifest.version}/{directory}".rstrip("/"))
