"""The storage contract on keys and bytes, shaped like an object store: no rename, no directories, put-if-absent.

What the protocol needs is built from five calls that every such store has: get, put, put-if-absent, delete and a
listing by prefix. Payload lies under its final key from the start, and the put of the manifest is the commit: a
version without a manifest is in no listing. A marker `staging/<nonce>`, holding the version's name, is put before
the first payload byte and deleted last, so that whatever a crash leaves behind is found again.

One thing is weaker than with a rename: a writer that wakes up while its abandoned version is being removed may
put its manifest in that very moment. Consumers refuse such a version, since files of its manifest are missing.

Several `MemoryStorage` objects on one `MemoryStore` stand for several machines.
"""

from __future__ import annotations

import pathlib
import secrets
import threading

from holdfast.channel.storage import Capabilities, Entry, Mount, check_component
from holdfast.core.manifest import MANIFEST
from holdfast.core.names import check_nonce, check_path
from holdfast.errors import ConflictError, IntegrityError, NotVisibleError, UsageError

_VERSIONS = "versions/"
_STAGING = "staging/"
_RETIRED = "retired-"
_ORPHAN = "orphan-"


class MemoryStore:
    """Keys and bytes, consistent at once for everybody. Safe from several threads."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(8)
        self._objects: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._num_changes = 0

    def get(self, key: str) -> bytes | None:
        with self._changed:
            return self._objects.get(key)

    def put(self, key: str, data: bytes) -> None:
        with self._changed:
            self._objects[key] = data
            self._note(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Whether `data` was put; False: something stands there."""
        with self._changed:
            if key in self._objects:
                return False
            self._objects[key] = data
            self._note(key)
            return True

    def delete(self, key: str) -> None:
        with self._changed:
            self._objects.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        with self._changed:
            return sorted(key for key in self._objects if key.startswith(prefix))

    def _note(self, key: str) -> None:
        if key == "CURRENT" or (key.startswith("cycles/") and key.endswith(".json")):
            self._num_changes += 1
            self._changed.notify_all()

    def watch(self) -> MemoryWatch:
        return MemoryWatch(self)

    @property
    def num_changes(self) -> int:
        """How often CURRENT or a claim was put."""
        with self._changed:
            return self._num_changes

    @property
    def changed(self) -> threading.Condition:
        """Notified at each such change."""
        return self._changed


class MemoryStorage:
    """See the module's docstring. `host` names the machine that this object stands for."""

    def __init__(self, store: MemoryStore | None = None, *, host: str = "memory") -> None:
        self._store = MemoryStore() if store is None else store
        self._host = host

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(kind="memory", rename_tree=False, local_paths=False, links=False, local=True, notifies=True)

    def list(self, directory: str) -> tuple[Entry, ...]:
        prefix = check_path(directory) + "/" if directory else ""
        kinds: dict[str, str] = {}
        for key in self._store.keys(prefix):
            name, below, _ = key[len(prefix) :].partition("/")
            kinds[name] = "directory" if below else kinds.get(name, "file")
        return tuple(Entry(name, kind) for name, kind in sorted(kinds.items()))

    def list_trees(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.list("versions") if self._manifest(entry.name) is not None)

    def _manifest(self, name: str) -> bytes | None:
        return self._store.get(f"{_VERSIONS}{name}/{MANIFEST}")

    def read(self, path: str, *, limit_bytes: int) -> bytes:
        data = self._get(path)
        if len(data) > limit_bytes:
            raise IntegrityError(f"{path}: {len(data)} bytes, the limit is {limit_bytes}", code="too_large", path=path)
        return data

    def _get(self, path: str) -> bytes:
        data = self._store.get(check_path(path))
        if data is None:
            if self._store.keys(path + "/"):
                raise IntegrityError(f"{path}: not a regular file (directory)", code="not_a_file", path=path)
            raise _absent(path)
        return data

    def open(self, path: str) -> MemoryReader:
        return MemoryReader(self._get(path))

    def create(self, path: str, data: bytes) -> None:
        if not self._store.put_if_absent(check_path(path), bytes(data)) and self._store.get(path) != data:
            raise ConflictError(f"{path}: somebody else's bytes stand there", code="exists", path=path)

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self._store.put(check_path(path), bytes(data))

    def delete(self, path: str) -> None:
        self._store.delete(check_path(path))

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        if path:
            check_path(path)

    def begin_tree(self, name: str, nonce: str) -> MemoryTreeWriter:
        check_component(name)
        if not self._store.put_if_absent(_STAGING + check_nonce(nonce), name.encode()):
            raise ConflictError(f"{_STAGING}{nonce}: something stands there", code="exists", path=_STAGING + nonce)
        return MemoryTreeWriter(self, self._store, name, nonce)

    def commit_tree(self, name: str, nonce: str, manifest: bytes) -> None:
        key = f"{_VERSIONS}{check_component(name)}/{MANIFEST}"
        marker = _STAGING + check_nonce(nonce)
        found = self._store.get(key)
        if found is None:
            if self._store.get(marker) is None:
                raise _absent(marker)
            self._store.put_if_absent(key, bytes(manifest))
            found = self._store.get(key)
        if found != manifest:
            raise ConflictError(f"{_VERSIONS}{name}: another version stands there", code="exists", path=key)
        self._store.delete(marker)

    def retire_tree(self, name: str, nonce: str) -> None:
        marker = _STAGING + _RETIRED + check_nonce(nonce)
        self._store.put(marker, check_component(name).encode())
        self._store.delete(f"{_VERSIONS}{name}/{MANIFEST}")
        self._remove_payload(name)
        self._store.delete(marker)

    def _remove_payload(self, name: str) -> None:
        for key in self._store.keys(f"{_VERSIONS}{name}/"):
            self._store.delete(key)

    def list_garbage(self) -> tuple[str, ...]:
        markers = [key.removeprefix(_STAGING) for key in self._store.keys(_STAGING)]
        owned = {(self._store.get(_STAGING + nonce) or b"").decode(errors="replace") for nonce in markers}
        orphans = [
            _ORPHAN + entry.name
            for entry in self.list("versions")
            if entry.name not in owned and self._manifest(entry.name) is None
        ]
        return tuple(sorted(markers + orphans))

    def remove_garbage(self, nonce: str) -> None:
        name = nonce.removeprefix(_ORPHAN)
        if name == nonce:
            name = (self._store.get(_STAGING + check_nonce(nonce)) or b"").decode(errors="replace")
        self._store.delete(_STAGING + nonce)  # first: a writer that wakes looks for it before it commits
        if name and self._manifest(check_component(name)) is None:
            self._remove_payload(name)

    def link(self, path: str, name: str) -> None:
        raise _unsupported("links")

    def link_target(self, path: str) -> str | None:
        return None

    def local_path(self, path: str) -> pathlib.Path:
        raise _unsupported("local_paths")

    def mount(self) -> Mount:
        return Mount(host=self._host, device=self._store.name)

    def free_bytes(self) -> int | None:
        return None

    def watch(self) -> MemoryWatch:
        return self._store.watch()


def _absent(path: str) -> NotVisibleError:
    return NotVisibleError(f"{path}: no such key", code="errno_enoent", path=path)


def _unsupported(capability: str) -> UsageError:
    return UsageError(
        f"an object store has no {capability}",
        code="unsupported",
        hint=f"ask capabilities.{capability} first",
        capability=capability,
    )


class MemoryReader:
    """The bytes of one key as they were when it was opened."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        part = self._data[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        """Nothing is held."""


class MemoryWriter:
    """Collects the parts of one file and puts them whole at `close`."""

    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._lock = threading.Lock()
        self._data = bytearray()
        self._state = "open"

    def write_at(self, offset: int, data: memoryview) -> None:
        with self._lock:
            self._require_open()
            part = data.cast("B") if data.format != "B" or data.ndim != 1 else data
            if offset + len(part) > len(self._data):
                self._data.extend(bytes(offset + len(part) - len(self._data)))
            self._data[offset : offset + len(part)] = part

    def close(self) -> None:
        with self._lock:
            if self._state == "closed":
                return
            self._require_open()
            self._store.put(self._key, bytes(self._data))
            self._state = "closed"

    def abort(self) -> None:
        with self._lock:
            if self._state == "open":
                self._state = "aborted"

    def _require_open(self) -> None:
        if self._state != "open":
            raise UsageError(f"{self._key} is {self._state}", code=f"writer_{self._state}")


class MemoryTreeWriter:
    """A version without a manifest yet."""

    def __init__(self, storage: MemoryStorage, store: MemoryStore, name: str, nonce: str) -> None:
        self._storage = storage
        self._store = store
        self._name = name
        self._nonce = nonce
        self._files: set[str] = set()

    def file(self, path: str) -> MemoryWriter:
        check_path(path)
        if path in self._files:
            raise ConflictError(f"{path}: written already", code="exists", path=path)
        if self._store.get(_STAGING + self._nonce) is None:
            raise _absent(_STAGING + self._nonce)
        self._files.add(path)
        return MemoryWriter(self._store, f"{_VERSIONS}{self._name}/{path}")

    def abort(self) -> None:
        self._storage.remove_garbage(self._nonce)


class MemoryWatch:
    """Wakes when CURRENT or a claim is put into the store by anybody."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._seen = store.num_changes
        self._woken = False

    def wait(self, timeout_s: float) -> bool:
        changed = self._store.changed
        with changed:
            found = changed.wait_for(lambda: self._woken or self._store.num_changes != self._seen, timeout_s)
            self._seen, self._woken = self._store.num_changes, False
            return found

    def wake(self) -> None:
        with self._store.changed:
            self._woken = True
            self._store.changed.notify_all()

    def close(self) -> None:
        self.wake()
